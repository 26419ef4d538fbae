"""Options changed between a checkpoint and the run that resumes from it."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from lightning_estimators.chained_optimizer import ChainedOptimizer
from lightning_estimators.modules import EstimatorModule
from lightning_estimators.modules.optimizers import PartScheduler

__all__ = ["Overrides"]

_SCHEDULERS = {"optimizer": "lr_scheduler", "surrogate_optimizer": "surrogate_lr_scheduler"}


class Overrides(pl.Callback):
    """Lets options win over the state of optimizers, schedulers and estimators that a checkpoint restores.

    Optimizers keep their learning rate (and all other options) in their state, and a temperature that is not learned is
    among the weights: restored as they are, they would silently replace what the command line says. Only options that
    differ from those of the checkpoint are put back.

    Args:
        saved: The model's arguments in the checkpoint.
        wanted: The model's arguments now.

    Raises:
        ValueError: An optimizer or scheduler is of another class than the state in the checkpoint.
    """

    def __init__(self, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
        super().__init__()
        self.changed: dict[str, dict[str, Any]] = {}
        for name in (*_SCHEDULERS, *_SCHEDULERS.values()):
            before, now = _parts(saved.get(name)), _parts(wanted.get(name))
            if before is None or now is None:
                continue
            if before[0] != now[0]:
                raise ValueError(
                    f"the checkpoint holds the state of {name} {before[0]}, which cannot be given to {now[0]}. Resume "
                    f"with the same class, or start anew with --ckpt_path null."
                )
            different = {key: value for key, value in now[1].items() if key in before[1] and before[1][key] != value}
            self.changed[name] = different
        others = (saved.keys() & wanted.keys()) - {*_SCHEDULERS, *_SCHEDULERS.values()}
        self._settings_changed = any(saved[name] != wanted[name] for name in others)
        self._settings: dict[str, Tensor] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Note the estimators' settings before weights are restored."""
        if self._settings_changed and isinstance(pl_module, EstimatorModule):
            for path, estimator in pl_module.gradient_estimators().items():
                frozen = {f"{path}.{name}": p for name, p in estimator.named_parameters() if not p.requires_grad}
                self._settings |= {name: p.detach().clone() for name, p in frozen.items() if p.ndim == 0}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the changed options back."""
        for name, value in self._settings.items():
            parameter = pl_module.get_parameter(name)
            parameter.data.copy_(value)
        parts = trainer.optimizers[0].parts if isinstance(trainer.optimizers[0], ChainedOptimizer) else {}
        configs = [c.scheduler for c in trainer.lr_scheduler_configs if isinstance(c.scheduler, PartScheduler)]
        for name, optimizer in zip(_SCHEDULERS, parts.values(), strict=False):
            schedulers = [c.scheduler for c in configs if c.scheduler.optimizer is optimizer]
            for option, value in self.changed.get(name, {}).items():
                for group in optimizer.param_groups:
                    if option == "lr" and group.get("initial_lr"):
                        # A schedule multiplies the rate it started from.
                        group["lr"] *= value / group["initial_lr"]
                        group["initial_lr"] = value
                    elif option in group:
                        group[option] = value
                if option == "lr":
                    for scheduler in schedulers:
                        if hasattr(scheduler, "base_lrs"):
                            scheduler.base_lrs = [value for _ in scheduler.base_lrs]
            for option, value in self.changed.get(_SCHEDULERS[name], {}).items():
                for scheduler in schedulers:
                    if hasattr(scheduler, option):
                        setattr(scheduler, option, value)


def _parts(made: Any) -> tuple[str, dict[str, Any]] | None:
    """Class and options of an optimizer or scheduler, which may be a class path alone."""
    if isinstance(made, str):
        return made, {}
    return None if made is None else (made["class_path"], dict(made.get("init_args") or {}))
