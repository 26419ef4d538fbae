"""Settings of estimators that follow the number of optimizer steps that the Trainer counts."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from lightning_estimators.schedules import set_schedules

__all__ = ["ScheduledSettings"]


class ScheduledSettings(pl.Callback):
    """Sets what follows a `Schedule` inside the module by the number of optimizer steps.

    Every `EstimatorModule` has one; give it to the Trainer for a LightningModule that is none. The Trainer's
    `global_step` counts optimizer steps, so batches whose gradients are accumulated are one, and it goes on where the
    checkpoint was saved. A module with several optimizers advances by one for each of their steps.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin, or go on where the checkpoint was saved."""
        set_schedules(pl_module, trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take up the settings of the next step."""
        set_schedules(pl_module, trainer.global_step)
