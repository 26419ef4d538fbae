"""A callback that compares estimators during training, to show whether another one would be better."""

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
from lightning_estimators.datamodules import Gymnasium
from lightning_estimators.estimators import GradientEstimator
from lightning_estimators.rollout import Policy

__all__ = ["EstimatorComparison"]


class EstimatorComparison(CheckedArguments, pl.Callback):
    """Runs `compare` every few epochs, on the first batch of the epoch, and logs and prints the result.

    The result is written as a table, a JSON file and a figure, `comparison_epoch<n>`, into the folder of the logs.
    Table and figure also go to TensorBoard, and variance and variance × time of every candidate to all loggers as
    curves (`comparison.report`). The recommendation is printed. The callback takes time, but does not change training,
    which is bit-identical without it. With several processes, the first one compares, on its own share of the batch,
    and the others wait.

    A policy is compared on rollouts that it acts for this purpose (`Gymnasium.rollouts`).

    Args:
        every_n_epochs: Epochs between two comparisons.
        budget: Seconds that each comparison may take.
        estimators: The candidates; None for all estimators of the package that work with the module.

    Attributes:
        latest: The result of the last comparison; None before the first one.

    Raises:
        ValueError: A number is out of range.
        TypeError: At the start of `fit`: the strategy divides the weights among processes, or the module uses manual
            optimization.

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
        """Keep the first batch of an epoch that ends with a comparison."""
        if batch_idx == 0 and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._batch = batch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare, if this epoch's turn has come."""
        batch, self._batch = self._batch, None
        if batch is None:
            return
        if trainer.is_global_zero:
            data = getattr(trainer, "datamodule", None)
            if isinstance(pl_module, Policy) and isinstance(data, Gymnasium):
                batch = data.rollouts(pl_module)  # on the one of the epoch, acting would not be seen to vary
            self.latest = compare(pl_module, batch, self.estimators, self.budget, progress=False)
            step = max(trainer.global_step - 1, 0)  # the step at which figures of the last batch are logged
            write_report(self.latest, trainer, step, f"comparison_epoch{trainer.current_epoch}")
            rank_zero_info(f"Epoch {trainer.current_epoch}: {self.latest.recommendation}")
        trainer.strategy.barrier("EstimatorComparison")
