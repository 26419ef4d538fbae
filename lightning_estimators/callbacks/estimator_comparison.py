"""Comparing estimators now and then during training, so that a run shows when another one would pay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info

from lightning_estimators.arguments import CheckedArguments
from lightning_estimators.comparison import Comparison, compare
from lightning_estimators.comparison.report import write_report
from lightning_estimators.estimators import GradientEstimator

__all__ = ["EstimatorComparison"]


class EstimatorComparison(CheckedArguments, pl.Callback):
    """Runs `compare` at the end of every few epochs, on the first batch of that epoch, and keeps what it found.

    Written: table, JSON and figure as `comparison_epoch<n>` into the log folder, table and figure to TensorBoard, and
    variance and variance × time of every candidate as curves (`comparison.report`). The recommendation is printed.
    Training is bit-identical with and without the callback, but for the time it takes. With several processes the
    first one compares, on its own share of the batch, while the others wait.

    Args:
        every_n_epochs: Epochs between two comparisons.
        budget: Seconds of each.
        estimators: The candidates; None for all that fit.

    Attributes:
        latest: What the last comparison found, or None.

    Raises:
        ValueError: A number is out of range.
        TypeError: At the start of `fit`: the strategy divides the weights among processes, or the module steps its
            optimizers itself.

    Example:
        >>> trainer = pl.Trainer(
        ...     callbacks=[EstimatorComparison(every_n_epochs=50)], logger=False, enable_checkpointing=False
        ... )
    """

    def __init__(
        self,
        every_n_epochs: int = 10,
        budget: float = 30.0,
        estimators: Sequence[GradientEstimator] | None = None,
    ) -> None:
        super().__init__()
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1, got {every_n_epochs!r}.")
        if not (budget > 0 and math.isfinite(budget)):
            raise ValueError(f"budget must be a positive number of seconds, got {budget!r}.")
        self.every_n_epochs = every_n_epochs
        self.budget = budget
        self.estimators = estimators
        self.latest: Comparison | None = None
        self._batch: Any = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work before training starts."""
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise TypeError(
                f"EstimatorComparison repeats the training step of {type(pl_module).__name__}, but with "
                "automatic_optimization=False that step also changes the weights. Use automatic optimization."
            )
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise TypeError(
                "EstimatorComparison runs the module in one process, which needs all weights there; the strategy "
                f'{type(trainer.strategy).__name__} divides them. Use one device or strategy="ddp".'
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the first batch of an epoch at whose end is compared."""
        if batch_idx == 0 and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._batch = batch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare, if this epoch's turn has come."""
        batch, self._batch = self._batch, None
        if batch is None:
            return
        if trainer.is_global_zero:
            self.latest = compare(pl_module, batch, self.estimators, self.budget, progress=False)
            step = max(trainer.global_step - 1, 0)  # as scalars of the last batch
            write_report(self.latest, trainer, step, f"comparison_epoch{trainer.current_epoch}")
            rank_zero_info(f"Epoch {trainer.current_epoch}: {self.latest.recommendation}")
        trainer.strategy.barrier("EstimatorComparison")
