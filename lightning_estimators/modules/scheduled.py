"""A callback that changes settings of estimators, such as a temperature, as training proceeds."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from lightning_estimators.schedules import FollowsSchedules

__all__ = ["ScheduledSettings"]


class ScheduledSettings(pl.Callback):
    """Updates all settings in the module that follow a `Schedule`, by the number of optimizer steps taken.

    Every `EstimatorModule` has this callback; for any other LightningModule, give one to the Trainer. The number of
    steps is the Trainer's `global_step`. Batches whose gradients are accumulated count as one step, each of several
    optimizers counts its own steps, and a resumed run continues the count of its checkpoint.
    """

    def __init__(self) -> None:
        super().__init__()
        self._following: list[FollowsSchedules] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the settings for the first step, or the first one after a checkpoint."""
        self._following = [part for part in pl_module.modules() if isinstance(part, FollowsSchedules)]
        self._follow(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Set the settings for the next step."""
        self._follow(trainer)

    def _follow(self, trainer: pl.Trainer) -> None:
        for part in self._following:
            part.set_step(trainer.global_step)
