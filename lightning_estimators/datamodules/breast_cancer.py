"""The breast cancer data that come with scikit-learn: a real classification problem without a download."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, NamedTuple

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from lightning_estimators.datamodules.base import check_integer
from lightning_estimators.datamodules.indexed import SPLIT, seeded_generator
from lightning_estimators.datamodules.loading import CheckedDataModule
from lightning_estimators.datamodules.rows import Rows

__all__ = ["BreastCancer", "LabelledSplits"]


class LabelledSplits(NamedTuple):
    """For each split, features of shape `(n, num_features)` and labels −1 or 1 of shape `(n,)`, both float32."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    whole: tuple[Tensor, Tensor]


class BreastCancer(CheckedDataModule):
    """Cell nuclei of 569 breast masses, 30 features each; y = 1 for the 357 benign, −1 for the 212 malignant ones.

    A batch is a pair `(x, y)` of float32 tensors of shapes `(batch_size, 30)` and `(batch_size,)`. The seed decides the
    order, and the split into 455 examples to train, 57 to validate and 57 to test. Every feature is standardised by its
    mean and standard deviation on the training examples.

    Validation and test have two loaders each: one of the split, and one of all 569 examples, on which Echraibi et al.
    (2020) report their results. Prediction uses the test split. Nothing is downloaded or written. Under DDP each rank
    loads its share.

    Attributes:
        num_features: 30, known before `setup`.
        train_size: 455, known before `setup`.

    Args:
        batch_size: Examples in a training batch of each rank; an epoch's last batch may be smaller.
        eval_batch_size: Examples in a batch of each rank in validation, test and prediction.
        seed: Seed of the split and of the order of training examples.

    Raises:
        ValueError: If an argument is out of range.

    Source: Wolberg, Mangasarian, Street and Street (1995), Breast Cancer Wisconsin (Diagnostic), UCI Machine Learning
    Repository, https://doi.org/10.24432/C5DW2B. Used in section 6.2 of Echraibi et al. (2020), *Generalized stochastic
    backpropagation*, https://hal.science/hal-02968975, which does not say how the data are scaled or split.

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
        check_integer("batch_size", batch_size, least=1)
        check_integer("eval_batch_size", eval_batch_size, least=1)
        check_integer("seed", seed, least=0)
        self.save_hyperparameters()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self._splits: LabelledSplits | None = None

    def __str__(self) -> str:
        # jsonargparse prints datamodules, and Lightning's own `__str__` fails on loaders that are not torch's: it takes
        # them for collections of datasets.
        return f"BreastCancer(batch_size={self.batch_size}, eval_batch_size={self.eval_batch_size}, seed={self.seed})"

    def setup(self, stage: str | None = None) -> None:
        """Load all splits, whatever the stage; later calls do nothing."""
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
        """Training batches, in a new order in each epoch (in the order of the data under `overfit_batches`)."""
        rank, world_size = self._shard()
        # Lightning itself turns shuffling off only for loaders of torch's own class.
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
        """Return the seed, by which `load_state_dict` notices that a checkpoint is used with another split."""
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
