"""Checks of `EstimatorModule`: options of the Trainer that cannot work, and losses of a wrong type or shape."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor

__all__ = ["check_costs", "refuse_unsupported"]


def refuse_unsupported(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Raise for options of the Trainer that cannot work.

    Args:
        trainer: The Trainer that is about to run.
        module: What it is about to run.

    Raises:
        ValueError: Naming the option and what to use instead.
    """
    name = type(module).__name__
    if trainer.precision == "16-true":
        raise ValueError(
            f'Trainer(precision="16-true") is not supported by {name}: squared gradients, which control variates '
            'minimise and Adam divides by, underflow. Use precision="bf16-true", "bf16-mixed" or 32.'
        )
    for option in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        value: int | None = getattr(trainer, option)
        if value is not None and value < 1:
            raise ValueError(f"Trainer({option}={value}): it must be 1 or more.")
    if isinstance(trainer.strategy, DeepSpeedStrategy):
        raise ValueError(
            f"DeepSpeedStrategy is not supported by {name}: it steps an optimizer of its own in place of the two. "
            'Use strategy="ddp", or ModelParallelStrategy for models that outgrow one device.'
        )


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
            "num_examples, where the first dimension of the batch does not count examples)."
        )
    if not costs.requires_grad:
        raise ValueError(f"{name} must return costs with a gradient; no parameter is attached to them.")
