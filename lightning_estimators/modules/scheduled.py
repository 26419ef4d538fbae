"""Settings of estimators that follow the number of optimizer steps that the Trainer counts."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from lightning_estimators.schedules import FollowsSchedules

__all__ = ["ScheduledSettings"]


class ScheduledSettings(pl.Callback):
    """Sets what follows a `Schedule` inside the module by the number of optimizer steps.

    Every `EstimatorModule` has one; give it to the Trainer for a LightningModule that is none. The Trainer's
    `global_step` counts optimizer steps, so batches whose gradients are accumulated are one, and it goes on where the
    checkpoint was saved. A module with several optimizers advances by one for each of their steps.
    """

    def __init__(self) -> None:
        super().__init__()
        self._following: list[FollowsSchedules] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin, or go on where the checkpoint was saved."""
        self._following = [part for part in pl_module.modules() if isinstance(part, FollowsSchedules)]
        self._follow(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Take up the settings of the next step."""
        self._follow(trainer)

    def _follow(self, trainer: pl.Trainer) -> None:
        for part in self._following:
            part.set_step(trainer.global_step)
