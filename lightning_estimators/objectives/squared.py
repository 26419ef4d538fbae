"""A sum of squares, the first toy problem of Echraibi et al. (2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_estimators.arguments import check_event_dim, check_finite
from lightning_estimators.objectives.base import Objective
from lightning_estimators.objectives.derivatives import check_order

__all__ = ["SquaredCost"]


class SquaredCost(Objective):
    r"""$f(z) = \sum_j (z_j - t_j)^2$. Its third derivatives vanish, so the series of stochastic backpropagation ends.

    Args:
        target: t, a number or a tensor broadcastable to the event.
        event_dim: How many of the last axes of z are the event.

    Source: Echraibi et al. (2020), *Generalized stochastic backpropagation*, eq. 24 and section 6.1,
    https://hal.science/hal-02968975.

    Example:
        >>> import torch
        >>> SquaredCost(target=1.0)(torch.zeros(2, 3))
        tensor([3., 3.])
    """

    degree = 2
    closed_derivatives = True
    closed_changes = True

    def __init__(self, target: float | Tensor, event_dim: int = 1) -> None:
        check_finite(self, target=target)
        check_event_dim(self, event_dim)
        self.target, self.event_dim = target, event_dim

    def value(self, z: Tensor) -> Tensor:
        """Return the sum of squares."""
        terms = (z - self.target).square()
        return terms.flatten(-self.event_dim).sum(-1) if self.event_dim else terms

    def coordinate_change(self, z: Tensor, z_new: Tensor) -> Tensor:
        """Return the changes of the squares."""
        if z_new.ndim != z.ndim:
            return super().coordinate_change(z, z_new)
        return (z_new - z) * (z_new + z - 2 * self.target)

    def coordinate_derivative(self, z: Tensor, order: int = 1) -> Tensor:
        """Return 2 (z - t), 2, 0, ..."""
        check_order(order)
        if order == 1:
            return 2 * (z - self.target)
        return torch.full_like(z, 2.0 if order == 2 else 0.0)

    def coordinate_slope(self, z: Tensor, z_new: Tensor, direction: Tensor | None = None) -> Tensor:
        """Return 2 (z_new - t)."""
        if direction is not None or z_new.ndim != z.ndim:
            return super().coordinate_slope(z, z_new, direction)
        return 2 * (z_new - self.target)

    def is_differentiable(self, z: Tensor) -> bool:
        """Return True."""
        return True
