"""What `EstimatorModule` refuses: options of the Trainer, arguments, and what a loss must not return."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor

__all__ = ["check_callable", "check_costs", "refuse_unsupported"]


def refuse_unsupported(trainer: pl.Trainer, module: str) -> None:
    """Raise for options of the Trainer that cannot work with two optimizers stepped by the module.

    Args:
        trainer: The Trainer that is about to fit.
        module: Name of the module's class, for the message.

    Raises:
        ValueError: Naming the option and what to use instead.
    """
    if trainer.gradient_clip_val:
        raise ValueError(
            f"Trainer(gradient_clip_val={trainer.gradient_clip_val}) cannot reach the two optimizers of {module}: "
            f"remove it and pass gradient_clip_val={trainer.gradient_clip_val} to {module} "
            f"(--model.gradient_clip_val on the command line), which clips each optimizer's group."
        )
    if trainer.accumulate_grad_batches != 1:
        raise ValueError(
            f"Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}) cannot reach the two optimizers of "
            f"{module}: remove it and pass accumulate_grad_batches={trainer.accumulate_grad_batches} to {module} "
            "(--model.accumulate_grad_batches on the command line)."
        )
    if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy):
        raise ValueError(
            f"{type(trainer.strategy).__name__} is not supported by {module}: the gradient of an estimator's variance "
            'is a second derivative, which sharded parameters cannot give. Use strategy="ddp".'
        )
    if trainer.precision == "16-mixed":
        raise ValueError(
            f'Trainer(precision="16-mixed") is not supported by {module}: one loss scale cannot follow two optimizers. '
            'Use precision="bf16-mixed", which needs no scale, or 32.'
        )
    if trainer.precision == "16-true":
        raise ValueError(
            f'Trainer(precision="16-true") is not supported by {module}: squared gradients, which control variates '
            'minimise and Adam divides by, underflow. Use precision="bf16-true", "bf16-mixed" or 32.'
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            raise ValueError(
                f"The callback GradientAccumulationScheduler cannot reach the two optimizers of {module}: remove it "
                f"and pass accumulate_grad_batches to {module}."
            )
        if isinstance(callback, ModelCheckpoint) and callback._train_time_interval is not None:
            raise ValueError(
                "ModelCheckpoint(train_time_interval=...) never saves when a module steps its own optimizers, as "
                f"{module} does. Use every_n_train_steps or every_n_epochs."
            )


def check_callable(name: str, given: Any, *, optional: bool = False) -> None:
    """Raise unless an argument makes optimizers (or, `optional`, is None or makes schedulers).

    Raises:
        TypeError: It cannot be called.
    """
    if not callable(given) and not (optional and given is None):
        makes = "a scheduler from an optimizer" if optional else "an optimizer from parameters"
        raise TypeError(f"{name} must make {makes}: a class, or functools.partial(class, ...); got {given!r}.")


def check_costs(name: str, costs: Any, expected: int | None) -> None:
    """Raise unless a user's loss returned what can be averaged and backpropagated.

    Args:
        name: What returned the costs, for the message.
        costs: What it returned.
        expected: Number of examples in the batch, or None if unknown.

    Raises:
        TypeError: The costs are not a tensor.
        ValueError: They are not of shape (B,), or nothing is attached to them.
    """
    if not isinstance(costs, Tensor):
        raise TypeError(f"{name} must return a tensor of costs, one per example, got {type(costs).__name__}.")
    if costs.ndim != 1 or len(costs) == 0 or expected not in (None, len(costs)):
        raise ValueError(
            f"{name} must return one cost per example, shape ({'B' if expected is None else expected},), got shape "
            f"{tuple(costs.shape)}. Sum over everything but the examples, and do not average over them (or override "
            "batch_size, where the first dimension of the batch does not count examples)."
        )
    if not costs.requires_grad:
        raise ValueError(f"{name} must return costs with a gradient; no parameter is attached to them.")
