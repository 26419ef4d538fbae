"""Learning-rate schedules under manual optimization, where Lightning steps none: built, and stepped as it would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

__all__ = ["build", "step", "watched"]


def build(
    optimizer: OptimizerCallable, scheduler: LRSchedulerCallable | None, parameters: list[nn.Parameter], interval: str
) -> dict[str, Any]:
    """Return an optimizer of the parameters and its scheduler as `configure_optimizers` is to return them.

    Raises:
        ValueError: The optimizer or the scheduler cannot work.
    """
    made = optimizer(parameters)
    if isinstance(made, torch.optim.LBFGS):
        raise ValueError("LBFGS evaluates the loss many times per step, with other noise each time. Use another.")
    if scheduler is None:
        return {"optimizer": made}
    schedule = scheduler(made)
    if isinstance(schedule, ReduceLROnPlateau) and not hasattr(schedule, "monitor"):
        raise ValueError(
            "ReduceLROnPlateau does not say which metric it watches: use "
            "functools.partial(lightning.pytorch.cli.ReduceLROnPlateau, monitor=...), with a logged metric."
        )
    return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": interval}}


def step(module: pl.LightningModule, *, plateau: bool, resumed: Mapping[str, float]) -> None:
    """Step the schedulers that watch a metric, or those that do not.

    Args:
        module: The module in training.
        plateau: Which of the two kinds.
        resumed: Values of metrics that were not logged again since the run was resumed.

    Raises:
        ValueError: A metric that is watched was never logged.
    """
    metrics = watched(module.trainer, resumed) if plateau else {}
    for config in module.trainer.strategy.lr_scheduler_configs:
        if isinstance(config.scheduler, ReduceLROnPlateau) != plateau:
            continue
        monitor = getattr(config.scheduler, "monitor", "")
        if plateau and monitor not in metrics:
            raise ValueError(
                f"ReduceLROnPlateau(monitor={monitor!r}) found no such metric at step {module.global_step}; logged "
                f"so far: {sorted(module.trainer.callback_metrics)}. Log it, or monitor one of these."
            )
        module.lr_scheduler_step(config.scheduler, metrics.get(monitor) if plateau else None)


def watched(trainer: pl.Trainer, resumed: Mapping[str, float]) -> dict[str, Any]:
    """Return the latest values of the metrics that schedulers watch.

    Args:
        trainer: The Trainer, whose metrics are the latest.
        resumed: Values from the checkpoint, which stand in until a metric is logged again.
    """
    monitors = {getattr(config.scheduler, "monitor", None) for config in trainer.strategy.lr_scheduler_configs}
    latest = {**resumed, **trainer.callback_metrics}
    return {name: latest[name] for name in monitors if name in latest}
