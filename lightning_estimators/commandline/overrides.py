"""Options changed between a checkpoint and the run that resumes from it."""

from __future__ import annotations

import inspect
from typing import Any

import lightning.pytorch as pl
from torch.optim import Optimizer

from lightning_estimators.model_parts import gradient_estimators

__all__ = ["Overrides"]

_MAKERS = {
    "model": ("optimizer", "lr_scheduler"),
    "surrogate": ("surrogate_optimizer", "surrogate_lr_scheduler"),
    "critic": ("critic_optimizer", "critic_lr_scheduler"),
}
"""Arguments of the model that make the optimizer and the scheduler of a part, if it has them."""


class Overrides(pl.Callback):
    """Lets the options of a resumed run win over what its checkpoint restores.

    Optimizers and schedulers keep their options in their state, callbacks keep some, and a temperature that is not
    learned is among the weights: restored as they are, they would silently replace what the command line says. Of the
    model's options only those are put back that differ from the checkpoint's; of a callback's, all.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Note what the command line has built, before the checkpoint is restored."""
        self._frozen = {
            f"{path}.{name}": parameter.detach().clone()
            for path, estimator in gradient_estimators(pl_module).items()
            for name, parameter in estimator.named_parameters()
            if not parameter.requires_grad and parameter.ndim == 0
        }

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        """Note the options of callbacks; compare those of the model with the checkpoint's.

        Raises:
            ValueError: An optimizer or scheduler is of another class than the state in the checkpoint.
        """
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # their state comes after this
        self._callbacks = [(one, {n: getattr(one, n) for n in _restored_options(one)}) for one in callbacks]
        saved, wanted = checkpoint.get("hyper_parameters") or {}, dict(pl_module.hparams)
        self._changed: dict[str, dict[str, Any]] = {}
        makers = [name for pair in _MAKERS.values() for name in pair]
        for name in makers:
            (was, before), (now, after) = _made(saved.get(name)), _made(wanted.get(name))
            if was and now and was != now:
                raise ValueError(
                    f"the checkpoint holds the state of {name} {was}, which cannot be given to {now}. Resume with the "
                    "same class, or begin anew without --ckpt_path."
                )
            self._changed[name] = {key: after[key] for key in after.keys() & before.keys() if after[key] != before[key]}
        if all(saved[name] == wanted[name] for name in (saved.keys() & wanted.keys()) - set(makers)):
            self._frozen = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the options back."""
        for path, value in self._frozen.items():
            pl_module.get_parameter(path).data.copy_(value)
        for callback, options in self._callbacks:
            for name, value in options.items():
                setattr(callback, name, value)
        for part, optimizer in getattr(trainer.optimizers[0], "parts", {}).items():
            made, scheduled = (self._changed[name] for name in _MAKERS[part])
            schedulers = [getattr(c.scheduler, "scheduler", c.scheduler) for c in trainer.lr_scheduler_configs]
            own: list[Any] = [scheduler for scheduler in schedulers if scheduler.optimizer is optimizer]
            for option, value in made.items():
                _set_option(optimizer, own, option, value)
            for scheduler in own:
                vars(scheduler).update({option: v for option, v in scheduled.items() if hasattr(scheduler, option)})


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


def _restored_options(callback: pl.Callback) -> list[str]:
    """Arguments of a callback that are part of its state too."""
    arguments = inspect.signature(type(callback).__init__).parameters
    return [name for name in callback.state_dict() if name in arguments and hasattr(callback, name)]


def _made(maker: Any) -> tuple[str | None, dict[str, Any]]:
    """Class and options of an optimizer or scheduler, which may be a class path alone."""
    if isinstance(maker, str):
        return maker, {}
    return (maker["class_path"], dict(maker.get("init_args") or {})) if maker else (None, {})
