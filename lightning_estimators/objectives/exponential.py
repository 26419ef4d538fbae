"""A sum of exponentials, the second toy problem of Echraibi et al. (2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_estimators.arguments import check_event_dim, check_finite
from lightning_estimators.objectives.base import Objective
from lightning_estimators.objectives.derivatives import check_order

__all__ = ["ExponentialCost"]


class ExponentialCost(Objective):
    r"""$f(z) = \sum_j e^{\varepsilon z_j}$, for which the series of stochastic backpropagation has a closed form.

    Args:
        rate: ε, a number or a tensor broadcastable to the event.
        event_dim: How many of the last axes of z are the event.

    Source: Echraibi et al. (2020), *Generalized stochastic backpropagation*, eq. 25 and section 6.1,
    https://hal.science/hal-02968975.

    Example:
        >>> import torch
        >>> ExponentialCost(rate=-0.49)(torch.zeros(2, 3))
        tensor([3., 3.])
    """

    closed_derivatives = True
    closed_changes = True

    def __init__(self, rate: float | Tensor, event_dim: int = 1) -> None:
        check_event_dim(self, event_dim)
        check_finite(self, rate=rate)
        self.rate, self.event_dim = rate, event_dim

    def value(self, z: Tensor) -> Tensor:
        """Return the sum of exponentials."""
        terms = torch.exp(self.rate * z)
        return terms.flatten(-self.event_dim).sum(-1) if self.event_dim else terms

    def coordinate_change(self, z: Tensor, z_new: Tensor) -> Tensor:
        """Return the changes of the exponentials."""
        if z_new.ndim != z.ndim:
            return super().coordinate_change(z, z_new)
        return torch.exp(self.rate * z) * torch.expm1(self.rate * (z_new - z))

    def coordinate_derivative(self, z: Tensor, order: int = 1) -> Tensor:
        """Return ε^n times the exponentials."""
        check_order(order)
        return torch.as_tensor(self.rate, dtype=z.dtype, device=z.device) ** order * torch.exp(self.rate * z)

    def coordinate_slope(self, z: Tensor, z_new: Tensor, direction: Tensor | None = None) -> Tensor:
        """Return ε times the exponentials of the moved coordinates."""
        if direction is not None or z_new.ndim != z.ndim:
            return super().coordinate_slope(z, z_new, direction)
        return self.rate * torch.exp(self.rate * z_new)

    def is_differentiable(self, z: Tensor) -> bool:
        """Return True."""
        return True

    def exponential(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return ε and the exponentials."""
        return torch.as_tensor(self.rate, dtype=z.dtype, device=z.device), torch.exp(self.rate * z)
