"""Sums of costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from lightning_estimators.objectives.base import Objective
from lightning_estimators.objectives.callable import as_objective

__all__ = ["Sum"]


class Sum(Objective):
    r"""$f(z) = \sum_i f_i(z)$. The changes and derivatives of each term are computed by that term's own methods.

    Args:
        terms: At least one objective or plain callable. Plain callables are evaluated at every changed point.
        event_dim: How many of the last axes of z are the event; None to take it from the objectives among the terms,
            or 1 if all terms are plain callables.

    Raises:
        TypeError: A term is not callable.
        ValueError: There are no terms, or terms with different `event_dim`.

    Example:
        >>> import torch
        >>> from lightning_estimators.objectives import Separable
        >>> f = Sum([Separable(lambda z: 3 * z), lambda z: z.prod(-1)])
        >>> z = torch.tensor([1.0, 0.0])
        >>> f(z), f.coordinate_change(z, 1 - z)
        (tensor(3.), tensor([-3.,  4.]))
    """

    def __init__(self, terms: Sequence[Callable[[Tensor], Tensor]], event_dim: int | None = None) -> None:
        terms = list(terms)
        if not terms:
            raise ValueError("Sum expected at least one term, got none.")
        dims = {f"{type(t).__name__} (term {i})": t.event_dim for i, t in enumerate(terms) if isinstance(t, Objective)}
        if event_dim is not None:
            dims["event_dim of the sum"] = event_dim
        if len(set(dims.values())) > 1:
            raise ValueError(
                f"Sum expected terms of one event_dim, got {dims}. Build them all with the same event_dim."
            )
        self.event_dim = next(iter(dims.values()), 1)
        self.terms = [as_objective(term, self.event_dim) for term in terms]
        degrees = [term.degree for term in self.terms]
        self.degree = None if None in degrees else max(degree for degree in degrees if degree is not None)
        self.closed_derivatives = all(term.closed_derivatives for term in self.terms)
        self.closed_changes = all(term.closed_changes for term in self.terms)

    def value(self, z: Tensor) -> Tensor:
        """Return the sum of the terms' values."""
        return _total([term(z) for term in self.terms])

    def coordinate_change(self, z: Tensor, z_new: Tensor) -> Tensor:
        """Return the sum of the terms' changes (shapes as in `Objective.coordinate_change`)."""
        return _total([term.coordinate_change(z, z_new) for term in self.terms])

    def class_change(self, z: Tensor) -> Tensor | None:
        """Return the sum of the terms' changes (see `Objective.class_change`); None if a term has no answer."""
        changes: list[Tensor] = []
        for term in self.terms:
            change = term.class_change(z)
            if change is None:
                return None
            changes.append(change)
        return _total(changes)

    def chosen_changes(self, z: Tensor, z_new: Tensor, which: tuple[Tensor, Tensor], here: Tensor | None) -> Tensor:
        """Return the sum of the terms' selected changes (shapes as in `Objective.chosen_changes`)."""
        alone = here if len(self.terms) == 1 else None  # of f(z) only the sum over terms is known
        return _total([term.chosen_changes(z, z_new, which, alone) for term in self.terms])

    def coordinate_derivative(self, z: Tensor, order: int = 1) -> Tensor:
        """Return the sum of the terms' derivatives (shapes as in `Objective.coordinate_derivative`)."""
        return _total([term.coordinate_derivative(z, order) for term in self.terms])

    def coordinate_slope(self, z: Tensor, z_new: Tensor, direction: Tensor | None = None) -> Tensor:
        """Return the sum of the terms' slopes (shapes as in `Objective.coordinate_slope`)."""
        return _total([term.coordinate_slope(z, z_new, direction) for term in self.terms])

    def is_differentiable(self, z: Tensor) -> bool:
        """Whether every term has a gradient in z."""
        return all(term.is_differentiable(z) for term in self.terms)


def _total(values: list[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
