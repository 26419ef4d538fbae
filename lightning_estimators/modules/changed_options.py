"""Options that were changed between a checkpoint and the run that resumes from it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from torch.optim import Optimizer

from lightning_estimators.model_parts import gradient_estimators

__all__ = ["ChangedOptions"]

_GIVEN = "given_options"  # key of what this class adds to a checkpoint


class ChangedOptions(pl.Callback):
    """Lets options that a resumed run was given anew win over those that its checkpoint restores.

    Optimizers and schedulers keep their options in their state, callbacks keep some, and a temperature that is not
    learned is among the weights: restored as they are, they would silently replace what the new run was given. Only
    options that differ from those of the run that saved the checkpoint are put back. All others go on from where that
    run has brought them.

    Every `EstimatorModule` has one; give it to the Trainer for a LightningModule that is none.

    Raises:
        ValueError: In `fit`, if an optimizer or scheduler is of another class than the state in the checkpoint.
    """

    def __init__(self) -> None:
        super().__init__()
        self._callbacks: dict[str, dict[str, Any]] = {}  # what each was given, by the key of its state
        self._settings: dict[str, float] = {}  # of estimators, those that are not learned
        self._changed: dict[str, dict[str, Any]] = {}  # the same and options of optimizers, but only what is put back

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Note what the run was given, before a checkpoint is restored."""
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set outside the class
        self._callbacks = {callback.state_key: _given_to(callback) for callback in callbacks}
        self._settings = {
            f"{path}.{name}": parameter.item()
            for path, estimator in gradient_estimators(pl_module).items()
            for name, parameter in estimator.named_parameters()
            if not parameter.requires_grad and parameter.ndim == 0 and not parameter.is_meta
        }
        self._changed = {}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep what the run was given."""
        checkpoint[_GIVEN] = {"callbacks": self._callbacks, "settings": self._settings}

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        """Compare what the run was given with what the run that saved the checkpoint was given."""
        before = checkpoint.get(_GIVEN, {})
        self._changed = {"settings": _differences(before.get("settings", {}), self._settings)}
        for key, given in self._callbacks.items():
            restored = (checkpoint.get("callbacks") or {}).get(key)
            options = _differences(before.get("callbacks", {}).get(key, {}), given)
            if isinstance(restored, Mapping):
                self._changed[key] = {name: value for name, value in options.items() if name in restored}
        saved, wanted = checkpoint.get("hyper_parameters") or {}, dict(pl_module.hparams)
        for name in (name for name in wanted if name.endswith(("optimizer", "lr_scheduler"))):
            (was, options_then), (now, options_now) = _made_by(saved.get(name)), _made_by(wanted[name])
            if was and now and was != now:
                raise ValueError(
                    f"the checkpoint holds the state of {name} {was}, which cannot be given to {now}. Resume with the "
                    "same class, or begin anew without a checkpoint."
                )
            self._changed[name] = _differences(options_then, options_now)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the changed options back."""
        changed, self._changed = self._changed, {}
        for path, value in changed.get("settings", {}).items():
            pl_module.get_parameter(path).data.fill_(value)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            for name, value in changed.get(callback.state_key, {}).items():
                setattr(callback, name, value)
        for part, optimizer in getattr(next(iter(trainer.optimizers), None), "parts", {}).items():
            prefix = "" if part == "model" else f"{part}_"
            schedulers = [getattr(c.scheduler, "scheduler", c.scheduler) for c in trainer.lr_scheduler_configs]
            own: list[Any] = [scheduler for scheduler in schedulers if scheduler.optimizer is optimizer]
            for option, value in changed.get(f"{prefix}optimizer", {}).items():
                _set_option(optimizer, own, option, value)
            scheduled = changed.get(f"{prefix}lr_scheduler", {})
            for scheduler in own:
                vars(scheduler).update({option: v for option, v in scheduled.items() if hasattr(scheduler, option)})


def _given_to(callback: pl.Callback) -> dict[str, Any]:
    """Arguments of a callback that it keeps under their names, where they are plain values."""
    arguments = inspect.signature(type(callback).__init__).parameters
    kept = {name: value for name, value in vars(callback).items() if name in arguments}
    return {name: value for name, value in kept.items() if value is None or type(value) in (bool, int, float, str)}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in now.items() if name in before and before[name] != value}


def _made_by(maker: Any) -> tuple[str | None, dict[str, Any]]:
    """Class and options of an optimizer or scheduler, which may be a class path alone."""
    if isinstance(maker, str):
        return maker, {}
    if isinstance(maker, Mapping) and "class_path" in maker:
        return maker["class_path"], dict(maker.get("init_args") or {})
    return None, {}


def _set_option(optimizer: Optimizer, schedulers: list[Any], option: str, value: Any) -> None:
    for group in optimizer.param_groups:
        if option == "lr" and group.get("initial_lr"):
            # A schedule multiplies the rate it started from.
            group["lr"] *= value / group["initial_lr"]
            group["initial_lr"] = value
        elif option in group:
            group[option] = value
    for scheduler in schedulers:
        if option == "lr" and hasattr(scheduler, "base_lrs"):
            scheduler.base_lrs = [value for _ in scheduler.base_lrs]
