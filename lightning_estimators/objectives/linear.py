"""The base class of costs that begin with a linear layer."""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_estimators.arguments import check_event_dim
from lightning_estimators.noise import current_scope
from lightning_estimators.objectives.base import Objective

__all__ = ["LinearObjective"]


class LinearObjective(Objective):
    """A cost of the pre-activations $a = W z + c$, z flattened over its event axes.

    An estimator first evaluates f at its samples, and then changes or slopes at the same samples. The pre-activations
    of the first evaluation are kept for the second, so the product with W is computed once in a call of an estimator.

    Implementing one: follow `Objective`; call `pre_activations` in `value`, and `pre_activations_again` in all other
    methods.

    Args:
        weight: W, shape `(outputs, inputs)`; or `(outputs,) + event_shape`.
        bias: c, shape `(outputs,)`, or None.
        event_dim: How many of the last axes of z are the event.
        signed: Whether $2z - 1$ enters in place of z.

    Raises:
        ValueError: The shapes of weight and bias do not fit each other.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, event_dim: int, *, signed: bool = False) -> None:
        if weight.ndim < 1 or (bias is not None and bias.shape != weight.shape[:1]):
            raise ValueError(
                f"{type(self).__name__} expected weight of shape (outputs, inputs) and bias of shape (outputs,), got "
                f"{tuple(weight.shape)} and {None if bias is None else tuple(bias.shape)}."
            )
        check_event_dim(self, event_dim)
        self.weight, self.bias, self.event_dim, self.signed = weight.reshape(len(weight), -1), bias, event_dim, signed
        self._kept: tuple[int, weakref.ref[Tensor], Tensor] | None = None

    def pre_activations(self, z: Tensor) -> Tensor:
        """Return W z + c, shape `lead + (outputs,)`, attached to W and c, in their dtype."""
        a = self._linear(z, self.weight.dtype)
        self._kept = (current_scope(), weakref.ref(z), a.detach())
        return a

    def pre_activations_again(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        """Return W z + c in the given dtype, without gradient; taken from `value` if it was called at the same z."""
        if self._kept is not None:
            scope, seen, a = self._kept
            # Within one call of an estimator, which is one scope, neither z nor W changes. Outside of any estimator
            # no two scopes are equal, so nothing is reused.
            if scope == current_scope() and seen() is z and a.dtype == dtype:
                return a
        with torch.no_grad():
            return self._linear(z, dtype)

    def _linear(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        lead = z.shape[: z.ndim - self.event_dim]
        entries = z.shape[z.ndim - self.event_dim :].numel()
        if entries != self.weight.shape[1]:
            raise ValueError(
                f"expected z with an event of {self.weight.shape[1]} entries, as many as the columns of weight, got "
                f"{entries}: z has shape {tuple(z.shape)}, of which the last {self.event_dim} axes are the event."
            )
        bias = None if self.bias is None else self.bias.to(dtype)
        z = 2 * z - 1 if self.signed else z
        return F.linear(z.reshape(*lead, entries).to(dtype), self.weight.to(dtype), bias)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}
