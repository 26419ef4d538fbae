"""Scikit-learn's bundled breast cancer data: a real classification problem that needs no network."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, NamedTuple

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from lightning_estimators.datamodules.base import _check_integer
from lightning_estimators.datamodules.indexed import SPLIT, seeded_generator
from lightning_estimators.datamodules.rows import Rows

__all__ = ["BreastCancer", "LabelledSplits"]


class LabelledSplits(NamedTuple):
    """Pairs of features, float32 `(n, num_features)`, and labels −1 or 1, float32 `(n,)`."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    whole: tuple[Tensor, Tensor]


class BreastCancer(pl.LightningDataModule):
    """Cell nuclei of 569 breast masses, 30 features each; y = 1 for the 357 benign, −1 for the 212 malignant ones.

    A batch is a pair `(x, y)` of float32 tensors of shapes `(batch_size, 30)` and `(batch_size,)`. Split by the seed
    into 455 examples to train, 57 to validate and 57 to test; every feature is standardised by its mean and standard
    deviation on the training examples. Another `seed` is another split and another order.

    Validation and test have two loaders: that of the split, and the whole data, all 569 examples, on which the paper
    reports. Prediction has the test split. Nothing is downloaded or written. Under DDP each rank loads its share.

    Attributes:
        num_features: 30, known before `setup`.
        train_size: 455, known before `setup`.

    Args:
        batch_size: Examples in a training batch of each rank; an epoch's last batch may be smaller.
        eval_batch_size: The same for validation, test and prediction.
        seed: Seed of the split and of the order of training examples.

    Raises:
        ValueError: If an argument is out of range.

    Source: W. Wolberg, O. Mangasarian, N. Street and W. Street, Breast Cancer Wisconsin (Diagnostic), UCI Machine
    Learning Repository (1995). Second paper, 6.2, which does not say how it scales or splits them.

    Example:
        >>> data = BreastCancer(batch_size=64)
        >>> data.setup()
        >>> x, y = next(iter(data.train_dataloader()))
        >>> x.shape, y.shape, y.unique().tolist()
        (torch.Size([64, 30]), torch.Size([64]), [-1.0, 1.0])
    """

    num_features: ClassVar[int] = 30
    train_size: ClassVar[int] = 455
    val_size: ClassVar[int] = 57

    def __init__(self, *, batch_size: int = 64, eval_batch_size: int = 100, seed: int = 0) -> None:
        super().__init__()
        _check_integer("batch_size", batch_size, least=1)
        _check_integer("eval_batch_size", eval_batch_size, least=1)
        _check_integer("seed", seed, least=0)
        self.save_hyperparameters()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self._splits: LabelledSplits | None = None

    def __str__(self) -> str:
        # Lightning's own takes loaders for collections of datasets and fails; jsonargparse prints datamodules.
        return f"BreastCancer(batch_size={self.batch_size}, eval_batch_size={self.eval_batch_size}, seed={self.seed})"

    def setup(self, stage: str | None = None) -> None:
        """Load all splits, whatever the stage, once."""
        if self._splits is not None:
            return
        features, targets = load_breast_cancer(return_X_y=True)
        order = torch.randperm(len(features), generator=seeded_generator(self.seed, SPLIT))
        train, val, test = order.tensor_split([self.train_size, self.train_size + self.val_size])
        x = torch.as_tensor(StandardScaler().fit(features[train]).transform(features)).float()
        y = 2 * torch.as_tensor(targets).float() - 1
        self._splits = LabelledSplits((x[train], y[train]), (x[val], y[val]), (x[test], y[test]), (x, y))

    @property
    def splits(self) -> LabelledSplits:
        """The examples after `setup`."""
        if self._splits is None:
            raise RuntimeError("call BreastCancer.setup() before asking for examples")
        return self._splits

    def train_dataloader(self) -> Rows:
        """Training batches in an order of each epoch's own (in the order of the data under `overfit_batches`)."""
        rank, world_size = self._shard()
        # Lightning turns shuffling off for loaders of torch's class only.
        overfit = self.trainer is not None and getattr(self.trainer, "overfit_batches", 0) > 0
        return Rows(
            self.splits.train,
            self.batch_size,
            shuffle=not overfit,
            seed=self.seed,
            pad=True,
            rank=rank,
            world_size=world_size,
            limit=self.trainer.limit_train_batches if self.trainer else 1.0,
        )

    def val_dataloader(self) -> list[Rows]:
        """Batches of the validation split, and of the whole data."""
        return [self._evaluation(self.splits.val), self._evaluation(self.splits.whole)]

    def test_dataloader(self) -> list[Rows]:
        """Batches of the test split, and of the whole data."""
        return [self._evaluation(self.splits.test), self._evaluation(self.splits.whole)]

    def predict_dataloader(self) -> Rows:
        """Batches of the test split."""
        return self._evaluation(self.splits.test)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint should know to notice that it is used with another split."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warn if the checkpoint's model was trained on another split than this one."""
        if state_dict.get("seed", self.seed) != self.seed:
            warnings.warn(
                f"the checkpoint was trained on BreastCancer(seed={state_dict['seed']}), this is seed={self.seed}, "
                "which splits the data otherwise: examples that the model was trained on are among those of validation "
                f"and test. Use seed={state_dict['seed']} (--data.seed {state_dict['seed']})",
                stacklevel=2,
            )

    def _evaluation(self, rows: tuple[Tensor, Tensor]) -> Rows:
        rank, world_size = self._shard()
        return Rows(rows, self.eval_batch_size, seed=self.seed, rank=rank, world_size=world_size)

    def _shard(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
