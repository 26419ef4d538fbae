"""Any callable as a cost."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_estimators.objectives.answers import ask
from lightning_estimators.objectives.base import Objective

__all__ = ["CallableObjective", "as_objective"]


class CallableObjective(Objective):
    """Any callable.

    Args:
        f: Maps `sample_shape + batch_shape + event_shape` to `sample_shape + batch_shape`; a NumPy array of that shape
            will do. It must not change its argument in place.
        event_dim: How many of the last axes of z are the event.
        dtype: What z is cast to before f sees it; None leaves it as it is.
    """

    def __init__(self, f: Callable[[Tensor], Tensor], event_dim: int = 1, dtype: torch.dtype | None = None) -> None:
        self.f, self.event_dim, self.dtype = f, event_dim, dtype
        if isinstance(f, Objective):  # that only needed a cast
            self.degree, self.closed_derivatives = f.degree, f.closed_derivatives
            self.closed_changes = f.closed_changes

    def value(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        z = self._cast(z)
        if isinstance(self.f, Objective):
            return self.f.value(z)
        return ask(self.f, z, self.event_dim)

    def coordinate_change(self, z: Tensor, z_new: Tensor) -> Tensor:
        """Return the changes; f is asked itself if it is an objective that only needed a cast."""
        if isinstance(self.f, Objective):
            return self.f.coordinate_change(self._cast(z), self._cast(z_new))
        return super().coordinate_change(z, z_new)

    def chosen_changes(self, z: Tensor, z_new: Tensor, which: tuple[Tensor, Tensor], here: Tensor | None) -> Tensor:
        """Return some of the changes; f is asked itself if it is an objective that only needed a cast."""
        if isinstance(self.f, Objective):
            return self.f.chosen_changes(self._cast(z), self._cast(z_new), which, here)
        return super().chosen_changes(z, z_new, which, here)

    def coordinate_derivative(self, z: Tensor, order: int = 1) -> Tensor:
        """Return the derivatives; f is asked itself if it is an objective that only needed a cast."""
        if isinstance(self.f, Objective):
            return self.f.coordinate_derivative(self._cast(z), order)
        return super().coordinate_derivative(z, order)

    def coordinate_slope(self, z: Tensor, z_new: Tensor, direction: Tensor | None = None) -> Tensor:
        """Return the slopes; f is asked itself if it is an objective that only needed a cast."""
        if isinstance(self.f, Objective):
            return self.f.coordinate_slope(self._cast(z), self._cast(z_new), direction)
        return super().coordinate_slope(z, z_new, direction)

    def is_differentiable(self, z: Tensor) -> bool:
        """Whether f has a gradient in z; f is asked itself if it is an objective that only needed a cast."""
        if isinstance(self.f, Objective):
            return self.f.is_differentiable(self._cast(z))
        return super().is_differentiable(z)

    def exponential(self, z: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return what f says of itself, if it is an objective that only needed a cast."""
        return self.f.exponential(self._cast(z)) if isinstance(self.f, Objective) else None

    def _cast(self, z: Tensor) -> Tensor:
        return z if self.dtype is None else z.to(self.dtype)


def as_objective(f: Callable[[Tensor], Tensor], event_dim: int, dtype: torch.dtype | None = None) -> Objective:
    """Return f itself if it is an objective and needs no cast, else f as one."""
    if isinstance(f, Objective) and dtype is None:
        return f
    return CallableObjective(f, event_dim, dtype)
