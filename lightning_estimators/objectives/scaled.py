"""A cost times a number."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lightning_estimators.arguments import check_finite
from lightning_estimators.objectives.base import Objective
from lightning_estimators.objectives.callable import as_objective

__all__ = ["Scaled"]


class Scaled(Objective):
    """$c f(z)$, with the changes and derivatives of f, times c.

    The gradient estimate is linear in the cost, so multiplying the estimator's result by c has the same mean. But what
    an estimator learns depends on the scale of the cost that it is given. If f is a sum over a batch, for example, a
    baseline learned from batches of 100 examples is wrong for a last batch of 28; with c = 1 / batch size it is right
    for both.

    Args:
        f: An objective, or a plain callable.
        factor: c, finite.
        event_dim: How many of the last axes of z are the event; None takes it from f (1 for a plain callable).

    Raises:
        ValueError: The factor is not finite, or f is of another `event_dim`.

    Example:
        >>> import torch
        >>> from lightning_estimators.objectives import Separable
        >>> f = Scaled(Separable(torch.square), 0.5)
        >>> z = torch.tensor([1.0, 2.0])
        >>> f(z), f.coordinate_derivative(z)
        (tensor(2.5000), tensor([1., 2.]))
    """

    def __init__(self, f: Callable[[Tensor], Tensor], factor: float, event_dim: int | None = None) -> None:
        check_finite(self, factor=factor)
        if isinstance(f, Objective) and event_dim not in (None, f.event_dim):
            raise ValueError(f"Scaled expected event_dim={f.event_dim} as {type(f).__name__} has, got {event_dim}.")
        self.f = as_objective(f, 1 if event_dim is None else event_dim)
        self.factor, self.event_dim = factor, self.f.event_dim
        self.degree, self.closed_derivatives = self.f.degree, self.f.closed_derivatives
        self.closed_changes = self.f.closed_changes

    def value(self, z: Tensor) -> Tensor:
        """Return c f(z)."""
        return self.factor * self.f(z)

    def coordinate_change(self, z: Tensor, z_new: Tensor) -> Tensor:
        """Return c times the changes of f (shapes as in `Objective.coordinate_change`)."""
        return self.factor * self.f.coordinate_change(z, z_new)

    def class_change(self, z: Tensor) -> Tensor | None:
        """Return c times the changes of f (see `Objective.class_change`)."""
        change = self.f.class_change(z)
        return None if change is None else self.factor * change

    def chosen_changes(self, z: Tensor, z_new: Tensor, which: tuple[Tensor, Tensor], here: Tensor | None) -> Tensor:
        """Return c times the selected changes of f (shapes as in `Objective.chosen_changes`)."""
        inside = None if here is None or self.factor == 0 else here / self.factor
        return self.factor * self.f.chosen_changes(z, z_new, which, inside)

    def coordinate_derivative(self, z: Tensor, order: int = 1) -> Tensor:
        """Return c times the derivatives of f (shapes as in `Objective.coordinate_derivative`)."""
        return self.factor * self.f.coordinate_derivative(z, order)

    def coordinate_slope(self, z: Tensor, z_new: Tensor, direction: Tensor | None = None) -> Tensor:
        """Return c times the slopes of f (shapes as in `Objective.coordinate_slope`)."""
        return self.factor * self.f.coordinate_slope(z, z_new, direction)

    def is_differentiable(self, z: Tensor) -> bool:
        """Whether f has a gradient in z."""
        return self.f.is_differentiable(z)

    def exponential(self, z: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the rate of f and c times its exponential part, if it has one."""
        terms = self.f.exponential(z)
        return None if terms is None else (terms[0], self.factor * terms[1])
