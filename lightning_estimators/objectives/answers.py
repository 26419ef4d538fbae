"""Calling the user's cost function: checks of what it returns, and explanations of errors raised inside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from lightning_estimators.noise import independent_samples
from lightning_estimators.private_api import version

__all__ = ["ChangedInPlaceError", "as_costs", "call_cost"]

_PACKAGE = __name__.partition(".")[0]


class ChangedInPlaceError(ValueError):
    """f changed its argument."""

    def __init__(self) -> None:
        super().__init__(
            "f changed its argument z in place (as z.mul_(2), z[..., 0] = 1 or a *= 2 for a = z.numpy() do), which "
            "changes the sample that the gradient is computed from. Work on a copy: z = z.clone()."
        )


def call_cost(f: Callable[[Tensor], Tensor], z: Tensor, event_dim: int) -> Tensor:
    """Return f(z) as it is (`as_costs` checks it).

    An error raised inside f gets an additional line that says for which z it was raised, and what usually causes it.

    Args:
        f: The user's cost function.
        z: The samples, shape `sample_shape + batch_shape + event_shape`.
        event_dim: How many of the last axes of z are the event.

    Raises:
        ChangedInPlaceError: f changed z in place, as far as torch knows: not through `z.numpy()` or `z.data`.
    """
    before = version(z)
    try:
        # If f is random itself, its own samples must stay independent even where those of the estimator are coupled.
        with independent_samples():
            answer = f(z)
    except Exception as error:
        _explain(error, z, event_dim)
        raise
    if version(z) != before:
        raise ChangedInPlaceError
    return answer


def as_costs(answer: Any, z: Tensor, event_dim: int) -> Tensor:
    """Return what f returned as a tensor of costs: a tensor as it is, a NumPy array converted.

    Args:
        answer: What f returned for z.
        z: The samples, shape `sample_shape + batch_shape + event_shape`.
        event_dim: How many of the last axes of z are the event.

    Raises:
        TypeError: The answer is neither a tensor nor an array, or its numbers are complex.
        ValueError: Its shape is not `sample_shape + batch_shape`, or it is on another device than z.
    """
    expected = tuple(z.shape[: z.ndim - event_dim])
    fits = isinstance(answer, Tensor) and answer.shape == expected and answer.device == z.device
    if fits and not answer.is_complex():
        return cast(Tensor, answer)
    wanted = f"f must return a tensor of shape {expected} for z of shape {tuple(z.shape)}"
    if not isinstance(answer, Tensor):
        if not (hasattr(answer, "__array__") and hasattr(answer, "dtype") and hasattr(answer, "shape")):
            shown = "" if isinstance(answer, (dict, tuple, list)) else f" ({answer!r})"
            raise TypeError(f"{wanted}, got an object of class {type(answer).__name__}{shown}.")
        array = torch.as_tensor(answer, device=z.device)
        costs = array.to(z.dtype) if array.is_floating_point() else array
    else:
        costs = answer
    if costs.is_complex():
        raise TypeError(f"{wanted}, of real numbers, got {costs.dtype}. Take its real part, or its absolute value.")
    if costs.shape != expected:
        raise ValueError(
            "f must map sample_shape + batch_shape + event_shape to sample_shape + batch_shape: "
            f"for z of shape {tuple(z.shape)} expected {expected}, got {tuple(costs.shape)}."
        )
    if costs.device != z.device:
        raise ValueError(f"{wanted} on {z.device}, the device of z, got one on {costs.device}. Move it: .to(z.device).")
    return costs


def _explain(error: Exception, z: Tensor, event_dim: int) -> None:
    """Add a line to the message of an error raised inside f, unless this package raised it or has explained it."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    raised_by = "" if last is None else str(last.tb_frame.f_globals.get("__name__", ""))
    if raised_by.partition(".")[0] == _PACKAGE or not error.args or not isinstance(error.args[0], str):
        return
    message = error.args[0]
    if "raised inside the cost f" in message:
        return
    if "within the support" in message:
        hint = (
            "z may be relaxed, between the values of the discrete variable, which the validation of torch's "
            "distributions refuses: build those that f evaluates with validate_args=False"
        )
        message = message.partition("\n")[0].partition(", but found invalid")[0]
    elif "numpy()" in message:
        hint = (
            "z carries gradients, which NumPy cannot: a cost in NumPy needs an estimator that takes a black box, such "
        )
        hint += "as REINFORCE, RELAX or StochasticBackprop(f_gradient=False)"
    elif any(words in message for words in ("in-place", "inplace", "written-to")):
        hint = "f must not change z in place: work on a copy, z = z.clone()"
    else:
        hint = (
            "its first axis is the sample axis, which estimators add to the batch. Layers and losses that take exactly "
            "one leading axis (convolutions, BatchNorm, cross_entropy) work through "
            "lightning_estimators.objectives.per_example, which folds the leading axes into one"
        )
    shape, event = tuple(z.shape), tuple(z.shape[z.ndim - event_dim :])
    where = f"raised inside the cost f for z of shape {shape} = sample_shape + batch_shape + event_shape {event}"
    error.args = (f"{message}\nThis was {where}: {hint}.", *error.args[1:])
