"""Costs that are sums over coordinates: log densities of priors, entropies, closed-form KL divergences."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_estimators.arguments import check_event_dim
from lightning_estimators.objectives.base import Objective
from lightning_estimators.objectives.chunks import as_floating
from lightning_estimators.objectives.coordinates import Coordinates
from lightning_estimators.objectives.derivatives import check_order, repeated_derivative

__all__ = ["Separable"]


class Separable(Objective):
    r"""$f(z) = \sum_j g(z)_j$ with an elementwise function g, summed over the event axes.

    Entry j of g(z) must not depend on any other entry of z than $z_j$. It may depend on anything else, such as logits
    or weights. For one-hot coordinates, g acts on the entries of the vectors: `lambda z: z * logits` with normalised
    logits is the log-probability.

    Cost: the changes, which are exact, take one evaluation of g at z and one for each alternative.

    Args:
        g: Maps a tensor of shape `lead + event_shape` to one of the same shape, elementwise, for any number of axes in
            `lead`.
        event_dim: How many of the last axes of z are the event, categories included.

    Example:
        >>> import torch
        >>> f = Separable(lambda z: z * torch.tensor([1.0, 2.0]))
        >>> z = torch.tensor([[0.0, 1.0]])
        >>> f(z), f.coordinate_change(z, 1 - z)
        (tensor([2.]), tensor([[ 1., -2.]]))
    """

    closed_derivatives = True  # by autograd, but with one copy of z for all coordinates
    closed_changes = True

    def __init__(self, g: Callable[[Tensor], Tensor], event_dim: int = 1) -> None:
        check_event_dim(self, event_dim)
        self.g, self.event_dim = g, event_dim

    def value(self, z: Tensor) -> Tensor:
        """Return the sum of g(z) over the event."""
        return self._entries(z).flatten(z.ndim - self.event_dim).sum(-1) if self.event_dim else self._entries(z)

    def coordinate_change(self, z: Tensor, z_new: Tensor) -> Tensor:
        """Return g at the new coordinates minus g at the old (shapes as in `Objective.coordinate_change`)."""
        one_hot = Coordinates.of(z, z_new, self.event_dim).one_hot
        with torch.no_grad():
            change = self._entries(z_new.to(z.dtype)) - self._entries(z)
        return change.sum(-1) if one_hot else change

    def class_change(self, z: Tensor) -> Tensor:
        """Return the changes to all categories: g is evaluated at ones and at zeros."""
        with torch.no_grad():
            gain = self._entries(torch.ones_like(z)) - self._entries(torch.zeros_like(z))
            return gain - gain.gather(-1, z.argmax(-1, keepdim=True))

    def coordinate_derivative(self, z: Tensor, order: int = 1) -> Tensor:
        """Return the derivatives of g, by `order` backward passes (shapes as in `Objective.coordinate_derivative`)."""
        check_order(order)
        with torch.enable_grad():
            leaf = z.detach().clone().requires_grad_()
            return repeated_derivative(self._entries(leaf), leaf, order)

    def coordinate_slope(self, z: Tensor, z_new: Tensor, direction: Tensor | None = None) -> Tensor:
        """Return the derivative of g at the new coordinates (shapes as in `Objective.coordinate_slope`)."""
        along = Coordinates.of(z, z_new, self.event_dim).directions(direction).reshape(z_new.shape)
        with torch.enable_grad():
            leaf = z_new.detach().to(z.dtype).requires_grad_()
            slope = repeated_derivative(self._entries(leaf), leaf, 1) * along
        return slope if direction is None else slope.sum(-1)

    def _entries(self, z: Tensor) -> Tensor:
        out = self.g(z)
        if out.shape != z.shape:
            raise ValueError(
                f"Separable expected g to be elementwise: for z of shape {tuple(z.shape)} it must return that shape, "
                f"got {tuple(out.shape)}. Let g not sum; Separable does."
            )
        return as_floating(out, z)
