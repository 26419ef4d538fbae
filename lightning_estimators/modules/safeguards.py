"""What `EstimatorModule` refuses before training, and what it says when training must stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from lightning_estimators.estimators import GradientEstimator

__all__ = [
    "LateVerdict",
    "all_finite",
    "check_callable",
    "check_costs",
    "describe_nonfinite",
    "nonfinite_names",
    "refuse_unsupported",
]


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


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """0-d tensor that is finite exactly when every entry of every tensor is."""
    dense = [tensor.coalesce().values() if tensor.is_sparse else tensor for tensor in tensors]
    if not dense:
        return torch.zeros(())
    if all(tensor.device.type == "cpu" and tensor.numel() and not tensor.is_complex() for tensor in dense):
        # There the norm takes ten times as long, a fifth of a small step. Sums keep infinities and NaN, and are a
        # quarter of the work of the magnitudes, which are looked at only where a sum may have overflowed.
        total = torch.stack([tensor.sum() for tensor in dense]).sum()
        if total.isfinite():
            return total
        return torch.stack([torch.stack(tensor.aminmax()).abs().max() for tensor in dense]).max()
    # The largest magnitude, unlike the Euclidean norm, cannot overflow when every entry is finite.
    return torch.nn.utils.get_total_norm(dense, norm_type=math.inf)


def nonfinite_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold infinities or NaN."""
    floating = {name: tensor.detach() for name, tensor in tensors.items() if tensor.is_floating_point()}
    return [name for name, tensor in floating.items() if not math.isfinite(all_finite([tensor]).item())]


class LateVerdict:
    """Whether a step was finite, on its way from the device: read one step later, nobody waits for it.

    Args:
        finite: 0-d boolean on any device.
        describe: Makes the message of the error.
    """

    def __init__(self, finite: Tensor, describe: Callable[[], str]) -> None:
        self.describe = describe
        self.finite, self.arrived = finite, None
        if finite.device.type == "cuda":
            self.finite = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
            self.arrived = torch.cuda.current_stream(finite.device).record_event()

    def confirm(self) -> None:
        """Raise FloatingPointError if the step was not finite."""
        if self.arrived is not None:
            self.arrived.synchronize()
        if not self.finite:
            raise FloatingPointError(self.describe())


def describe_nonfinite(
    module: pl.LightningModule,
    batch_idx: int,
    costs: Tensor,
    estimators: Mapping[str, GradientEstimator],
    step: int | None = None,
) -> str:
    """Say at which step training broke, in which examples and parameters, and in what state the estimators are.

    Args:
        module: The module in training, with the gradients of the failed step.
        batch_idx: Index of the batch in its epoch.
        costs: Per-example costs of the failed step on this process.
        estimators: The module's estimators by path.
        step: The failed step if others may have begun since, whose gradients were zeros in place of its own; None if
            it is the current one, which was not taken.

    Returns:
        The message of the FloatingPointError.
    """
    stopped = (
        "training stopped before the weights were changed"
        if step is None
        else ("the weights saw zeros in place of its gradients, and training stopped at the next opportunity")
    )
    lines = [
        f"Non-finite loss or gradient at step {module.global_step if step is None else step} (epoch "
        f"{module.current_epoch}, batch {batch_idx}); {stopped}, and the last checkpoint is as it was."
    ]
    bad = int((~costs.isfinite()).sum())
    lines.append(f"  loss: {bad} of {costs.numel()} per-example costs on process {module.global_rank} are not finite")
    if step is None:
        lines.append(f"  gradients not finite: {_listed(_gradients(module))}")
    if weights := nonfinite_names(dict(module.named_parameters())):
        lines.append(f"  weights already not finite: {', '.join(weights)}")
    for path, estimator in estimators.items():
        state = ", ".join(f"{name}={value.item():.6g}" for name, value in estimator.diagnostics().items())
        lines.append(f"  {path} ({type(estimator).__name__}): {state or 'no diagnostics'}")
    lines.append("Try a lower learning rate, or gradient_clip_val; Trainer(detect_anomaly=True) finds the operation.")
    return "\n".join(lines)


def _gradients(module: nn.Module) -> list[str]:
    return nonfinite_names({name: p.grad for name, p in module.named_parameters() if p.grad is not None})


def _listed(names: list[str], limit: int = 12) -> str:
    rest = len(names) - limit
    return (", ".join(names[:limit]) or "none") + (f" and {rest} more" if rest > 0 else "")
