"""Any callable as a cost."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_estimators.arguments import check_event_dim
from lightning_estimators.objectives.answers import call_cost
from lightning_estimators.objectives.base import Objective

__all__ = ["CallableObjective", "as_objective"]


class CallableObjective(Objective):
    """Any callable as an objective: changes and derivatives are found by evaluating f and by autograd.

    Args:
        f: Maps a tensor of shape `sample_shape + batch_shape + event_shape` to costs of shape
            `sample_shape + batch_shape`, as a tensor or a NumPy array. It must not change its argument in place. It
            may also be an objective; then its own methods are used, and only the conversion to `dtype` is added.
        event_dim: How many of the last axes of z are the event.
        dtype: The dtype to which z is converted before it is given to f; None for no conversion.
    """

    def __init__(self, f: Callable[[Tensor], Tensor], event_dim: int = 1, dtype: torch.dtype | None = None) -> None:
        check_event_dim(self, event_dim)
        self.f, self.event_dim, self.dtype = f, event_dim, dtype
        if isinstance(f, Objective):  # wrapped only for the conversion to `dtype`
            self.degree, self.closed_derivatives = f.degree, f.closed_derivatives
            self.closed_changes = f.closed_changes

    def value(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        z = self._cast(z)
        if isinstance(self.f, Objective):
            return self.f.value(z)
        return call_cost(self.f, z, self.event_dim)

    def coordinate_change(self, z: Tensor, z_new: Tensor) -> Tensor:
        """Return the changes, by the objective's own method if f is an objective."""
        if isinstance(self.f, Objective):
            return self.f.coordinate_change(self._cast(z), self._cast(z_new))
        return super().coordinate_change(z, z_new)

    def class_change(self, z: Tensor) -> Tensor | None:
        """Return the changes to all categories; f is asked itself if it is an objective that only needed a cast."""
        return self.f.class_change(self._cast(z)) if isinstance(self.f, Objective) else None

    def chosen_changes(self, z: Tensor, z_new: Tensor, which: tuple[Tensor, Tensor], here: Tensor | None) -> Tensor:
        """Return the selected changes, by the objective's own method if f is an objective."""
        if isinstance(self.f, Objective):
            return self.f.chosen_changes(self._cast(z), self._cast(z_new), which, here)
        return super().chosen_changes(z, z_new, which, here)

    def coordinate_derivative(self, z: Tensor, order: int = 1) -> Tensor:
        """Return the derivatives, by the objective's own method if f is an objective."""
        if isinstance(self.f, Objective):
            return self.f.coordinate_derivative(self._cast(z), order)
        return super().coordinate_derivative(z, order)

    def coordinate_slope(self, z: Tensor, z_new: Tensor, direction: Tensor | None = None) -> Tensor:
        """Return the slopes, by the objective's own method if f is an objective."""
        if isinstance(self.f, Objective):
            return self.f.coordinate_slope(self._cast(z), self._cast(z_new), direction)
        return super().coordinate_slope(z, z_new, direction)

    def is_differentiable(self, z: Tensor) -> bool:
        """Whether f has a gradient in z, by the objective's own method if f is an objective."""
        if isinstance(self.f, Objective):
            return self.f.is_differentiable(self._cast(z))
        return super().is_differentiable(z)

    def exponential(self, z: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the exponential part of f if f is an objective that has one, otherwise None."""
        return self.f.exponential(self._cast(z)) if isinstance(self.f, Objective) else None

    def _cast(self, z: Tensor) -> Tensor:
        return z if self.dtype is None else z.to(self.dtype)


def as_objective(f: Callable[[Tensor], Tensor], event_dim: int, dtype: torch.dtype | None = None) -> Objective:
    """Return f itself if it is an objective and `dtype` is None; otherwise wrap it as a `CallableObjective`."""
    if isinstance(f, Objective) and dtype is None:
        return f
    return CallableObjective(f, event_dim, dtype)
