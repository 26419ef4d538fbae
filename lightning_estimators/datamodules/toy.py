"""Data for models that need none."""

from __future__ import annotations

import torch

from lightning_estimators.datamodules.base import check_integer
from lightning_estimators.datamodules.batches import Batches
from lightning_estimators.datamodules.loading import CheckedDataModule

__all__ = ["Toy"]


class Toy(CheckedDataModule):
    """Batches of zeros, shape `(batch_size, 1)`, which drive the training loop of a model that needs no data.

    Each row of a batch stands for one draw of the model's latents. An epoch has `num_batches` batches on each rank;
    validation, test and prediction have one.

    Args:
        batch_size: Rows in a batch of each rank.
        num_batches: Batches in an epoch.

    Raises:
        ValueError: If a number is less than 1.

    Example:
        >>> data = Toy(batch_size=2, num_batches=3)
        >>> [batch.tolist() for batch in data.train_dataloader()]
        [[[0.0], [0.0]], [[0.0], [0.0]], [[0.0], [0.0]]]
    """

    def __init__(self, *, batch_size: int = 1, num_batches: int = 100) -> None:
        super().__init__()
        check_integer("batch_size", batch_size, least=1)
        check_integer("num_batches", num_batches, least=1)
        self.save_hyperparameters()
        self.batch_size = batch_size
        self.num_batches = num_batches

    def __str__(self) -> str:
        # jsonargparse prints datamodules, and Lightning's own `__str__` fails on loaders that are not torch's: it takes
        # them for collections of datasets.
        return f"Toy(batch_size={self.batch_size}, num_batches={self.num_batches})"

    def train_dataloader(self) -> Batches:
        """`num_batches` batches of zeros."""
        return self._zeros(self.num_batches)

    def val_dataloader(self) -> Batches:
        """One batch of zeros."""
        return self._zeros(1)

    def test_dataloader(self) -> Batches:
        """One batch of zeros."""
        return self._zeros(1)

    def predict_dataloader(self) -> Batches:
        """One batch of zeros."""
        return self._zeros(1)

    def _zeros(self, num_batches: int) -> Batches:
        # Not sharded: each rank makes all of these batches, whatever the number of ranks.
        return Batches(torch.zeros(num_batches * self.batch_size, 1, dtype=torch.uint8), self.batch_size)
