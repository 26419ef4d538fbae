"""A callback that compares estimators during training, to show whether another one would be better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_estimators.arguments import CheckedArguments
from lightning_estimators.comparison import Comparison, compare
from lightning_estimators.comparison.candidates import in_one_line
from lightning_estimators.comparison.report import write_report
from lightning_estimators.datamodules import Gymnasium
from lightning_estimators.estimators import GradientEstimator
from lightning_estimators.isolation import alone
from lightning_estimators.model_parts import gradient_estimators
from lightning_estimators.rollout import Policy

__all__ = ["EstimatorComparison"]


class EstimatorComparison(CheckedArguments, pl.Callback):
    """Runs `compare` every few epochs, on the first batch of the epoch, and logs and prints the result.

    The result is written as a table, a JSON file and a figure, `comparison_epoch<n>`, into the folder of the logs.
    Table and figure also go to TensorBoard, and variance and variance × time of every candidate to all loggers as
    curves (`comparison.report`). The recommendation is printed. The callback takes time, but does not change training,
    which is bit-identical without it. If a comparison fails as a whole, there is a warning, and training goes on.

    A policy is compared on rollouts that it acts for this purpose (`Gymnasium.rollouts`).

    With several processes, the first one compares, on its own share of the batch; sums over processes that the module
    asks for are then those of this process. The others wait, for no longer than their timeout
    (`DDPStrategy(timeout=...)`, 30 minutes by default).

    Args:
        every_n_epochs: Epochs between two comparisons.
        budget: Seconds that each comparison may take.
        estimators: The candidates; None for all estimators of the package that work with the module.

    Attributes:
        latest: The result of the last comparison; None before the first one.

    Raises:
        ValueError: A number is out of range; or, at the start of `fit`, the module has no gradient estimator.
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
        self._alone: dist.ProcessGroup | None = None

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
        if trainer.world_size > 1:
            group = dist.new_group([0])  # which all processes must call
            self._alone = group if isinstance(group, dist.ProcessGroup) else None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a module without estimators, which it may build in `setup` or `configure_model`."""
        if not gradient_estimators(pl_module):
            raise ValueError(
                f"EstimatorComparison expects a module that holds gradient estimators, got {type(pl_module).__name__}, "
                "which has none of lightning_estimators.estimators among its parts."
            )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget the group of processes, so that this can be copied and used again."""
        self._alone = None

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
            self._compare(trainer, pl_module, batch)
        trainer.strategy.barrier("EstimatorComparison")

    def _compare(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any) -> None:
        data = getattr(trainer, "datamodule", None)
        try:
            with alone(self._alone):  # also for the report: Lightning agrees with all processes on the folder of logs
                if isinstance(module, Policy) and isinstance(data, Gymnasium):
                    batch = data.rollouts(module)  # on the one of the epoch, acting would not be seen to vary
                self.latest = compare(module, batch, self.estimators, self.budget, progress=False)
                step = max(trainer.global_step - 1, 0)  # the step at which figures of the last batch are logged
                write_report(self.latest, trainer, step, f"comparison_epoch{trainer.current_epoch}")
        except Exception as error:  # the others wait, and a run of days is worth more than a table
            rank_zero_warn(f"Epoch {trainer.current_epoch}: estimators could not be compared: {in_one_line(error)}")
            return
        rank_zero_info(f"Epoch {trainer.current_epoch}: {self.latest.recommendation}")
        if self.latest.interrupted:
            raise KeyboardInterrupt  # which ends training as it would anywhere else
