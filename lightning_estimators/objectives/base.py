"""Costs that know their structure: the two questions that generalized stochastic backpropagation asks of f."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from lightning_estimators.arguments import CheckedArguments
from lightning_estimators.noise import CommonNoise
from lightning_estimators.objectives.answers import as_costs
from lightning_estimators.objectives.chunks import EvaluatedInChunks, as_floating
from lightning_estimators.objectives.coordinates import Coordinates

__all__ = ["NotTwiceDifferentiableError", "Objective", "differentiated_twice"]

_twice: ContextVar[bool] = ContextVar("twice", default=False)


class NotTwiceDifferentiableError(ValueError):
    """f has a gradient, but one that is an estimate: a number that cannot be differentiated again."""


@contextmanager
def differentiated_twice() -> Iterator[None]:
    """Tell estimators inside f that their gradients are about to be differentiated, which most must refuse."""
    token = _twice.set(True)
    try:
        yield
    finally:
        _twice.reset(token)


def is_differentiated_twice() -> bool:
    """Whether f is evaluated for derivatives above the first."""
    return _twice.get()


class Objective(CheckedArguments, EvaluatedInChunks, ABC):
    """A cost f(z) that can say how it changes with one coordinate.

    Implementing one:

    1. `value`, attached to what f depends on, vectorised over any lead axes.
    2. `coordinate_change`, if structure makes it cheaper than evaluating f anew at every changed point (`_changes`
       evaluates any function at many points in chunks, under common noise, once you can write the points down).
    3. `coordinate_derivative`, if it has a closed form.
    4. Hold 2 and 3 to brute force in float64 in the tests.

    Attributes (those of `EvaluatedInChunks` beside them):
        event_dim: How many of the last axes of z are the event, categories of one-hot variables included.
        degree: Degree of f as a polynomial in every coordinate, if it is one: derivatives above it vanish, which ends
            the series of generalized stochastic backpropagation. None for other costs.
        closed_derivatives: Whether `coordinate_derivative` is cheap at any order.
        closed_changes: Whether all changes together cost about as much as f itself, so that there is no use in sampling
            them (`StochasticBackprop(num_changes=...)`).
    """

    event_dim: int = 1
    degree: int | None = None
    closed_derivatives: bool = False
    closed_changes: bool = False

    @abstractmethod
    def value(self, z: Tensor) -> Tensor:
        """Return f(z), shape of z without its event axes, attached to what f depends on."""

    def __call__(self, z: Tensor) -> Tensor:
        """Return f(z) with its shape checked."""
        out = as_costs(self.value(z), z, self.event_dim)
        return as_floating(out, z)

    def coordinate_change(self, z: Tensor, z_new: Tensor) -> Tensor:
        r"""Return how f changes when one coordinate of z moves, for every coordinate; without gradient.

        Entry j is $f(z \text{ with } z_j := z_j^{new}) - f(z)$. A cost that draws noise of its own (a nested estimator)
        draws the same noise at every point, so the differences carry none of it.

        Cost: here one evaluation of f per coordinate and alternative, and one of f(z), vectorised in chunks.

        Args:
            z: The point, shape `lead + event_shape`.
            z_new: Scalar coordinates: shape of z. One-hot coordinates, whose category is the last event axis: shape
                `(A,)` + shape of z, each alternative a one-hot vector per coordinate.

        Returns:
            Scalar coordinates: shape of z. One-hot coordinates: shape `(A,)` + shape of z without the category axis.

        Raises:
            ValueError: The shapes fit neither.

        Example:
            >>> import torch
            >>> from lightning_estimators.objectives import CallableObjective
            >>> f = CallableObjective(lambda z: z.prod(-1), event_dim=1)
            >>> f.coordinate_change(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 1.0]))
            tensor([0., 0., 1.])
        """
        at = Coordinates.of(z, z_new, self.event_dim)
        points, coordinates, _ = at.z.shape

        def changed(index: Tensor) -> Tensor:
            alternative, j = index // coordinates, index % coordinates
            out = at.z.repeat(len(index), 1, 1, 1)
            out[torch.arange(len(index), device=z.device), :, j] = at.z_new[alternative, :, j]
            return out.reshape(len(index), *z.shape)

        with torch.no_grad():
            change = self._changes(self, z, changed, len(at.z_new) * coordinates)
        return at.unflatten(change.reshape(len(at.z_new), coordinates, points).transpose(1, 2))

    def weighted_change(self, z: Tensor, z_new: Tensor, weights: Tensor) -> Tensor:
        """Return `coordinate_change(z, z_new)`, or estimates of it that are best where it weighs most.

        What rules ask for. Only a cost that samples its changes looks at the weights (`SampledChanges`).

        Args:
            z: As for `coordinate_change`.
            z_new: As for `coordinate_change`.
            weights: By what the rule multiplies each change, in size; of the shape of the answer, or broadcastable.
        """
        return self.coordinate_change(z, z_new)

    def chosen_changes(self, z: Tensor, z_new: Tensor, which: tuple[Tensor, Tensor], here: Tensor | None) -> Tensor:
        r"""Return some of the changes that `coordinate_change` returns all of: n at every point; without gradient.

        Cost: here n evaluations of f at every point, and one of f(z) unless it is given.

        Args:
            z: The point, shape `lead + event_shape`.
            z_new: As for `coordinate_change`.
            which: Which alternative, and which coordinate (counted through where the event has several axes), shape
                `(n, points)` each, where `points` counts through the axes of `lead`.
            here: f(z), shape `lead`, if that is known and f draws no noise; otherwise None.

        Returns:
            Tensor of shape `(n, points)`.
        """
        at = Coordinates.of(z, z_new, self.event_dim)
        points = torch.arange(len(at.z), device=z.device)

        def changed(index: Tensor) -> Tensor:
            alternative, j = which[0][index], which[1][index]
            out = at.z.repeat(len(index), 1, 1, 1)
            out[torch.arange(len(index), device=z.device)[:, None], points, j] = at.z_new[alternative, points, j]
            return out.reshape(len(index), *z.shape)

        with torch.no_grad():
            return self._changes(self, z, changed, len(which[0]), here).flatten(1)

    def coordinate_derivative(self, z: Tensor, order: int = 1) -> Tensor:
        r"""Return $\partial^n f / \partial z_j^n$ for every coordinate; without gradient.

        Exact. Order 1 costs one backward pass of f. Order n above 1 costs n nested reverse passes at one copy of z per
        coordinate, each pass about three times the one before: orders above 4 are for small problems.
        Zero where f does not depend on z through differentiable operations.

        Args:
            z: The point, shape `lead + event_shape`, of floating type.
            order: n, at least 1.

        Returns:
            Tensor of the shape of z.

        Raises:
            ValueError: `order` is less than 1; or above 1, and an estimator inside f cannot be differentiated twice.

        Example:
            >>> import torch
            >>> from lightning_estimators.objectives import CallableObjective
            >>> f = CallableObjective(lambda z: z.pow(3).sum(-1), event_dim=1)
            >>> f.coordinate_derivative(torch.tensor([1.0, 2.0]), order=2)
            tensor([ 6., 12.])
        """
        check_order(order)
        with torch.enable_grad():
            if order == 1:
                leaf = z.detach().clone().requires_grad_()
                return repeated_derivative(self(leaf), leaf, 1)
            lead = z.shape[: z.ndim - self.event_dim]
            flat = z.detach().reshape(lead.numel(), -1 if z.numel() else 0)
            out = torch.empty_like(flat)
            noise = CommonNoise(z.device)
            # The graph of a reverse pass holds a few times what it differentiates.
            for start, stop in self._chunks(flat.shape[1], z.numel() * z.element_size() * 2**order, z.device):
                index = torch.arange(start, stop, device=z.device)
                # Copy i moves along its own coordinate only, so derivatives of the sum are the unmixed ones.
                moved = flat[:, start:stop].T.clone().requires_grad_()
                points = flat.repeat(len(index), 1, 1)
                points[index - start, :, index] = moved
                with noise.replay(new_axis=len(lead)), differentiated_twice():
                    value = self(points.reshape(len(index), *z.shape))
                out[:, start:stop] = repeated_derivative(value, moved, order).T
        return out.reshape(z.shape)

    def coordinate_slope(self, z: Tensor, z_new: Tensor, direction: Tensor | None = None) -> Tensor:
        r"""Return the derivative of f in one coordinate after it moved, for every coordinate; without gradient.

        Entry j is $\partial f / \partial z_j$ at z with $z_j := z_j^{new}$; where coordinates are vectors (the entries
        of a Dirichlet variable) it is the derivative in the given direction.

        Cost: here one evaluation of f and of its gradient per coordinate and alternative, vectorised in chunks.

        Args:
            z: The point, shape `lead + event_shape`.
            z_new: As for `coordinate_change`.
            direction: For vector coordinates, shape of z_new; not given for scalars.

        Returns:
            Tensor of the shape that `coordinate_change` returns.

        Raises:
            ValueError: The shapes do not fit.

        Example:
            >>> import torch
            >>> from lightning_estimators.objectives import CallableObjective
            >>> f = CallableObjective(lambda z: z.square().sum(-1), event_dim=1)
            >>> f.coordinate_slope(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
            tensor([6., 8.])
        """
        at = Coordinates.of(z, z_new, self.event_dim)
        along = at.directions(direction)
        points, coordinates, _ = at.z.shape
        count = len(at.z_new) * coordinates
        out = z.new_empty(count, points)
        noise = CommonNoise(z.device)
        for start, stop in self._chunks(count, 3 * z.numel() * z.element_size(), z.device):
            index = torch.arange(start, stop, device=z.device)
            alternative, j = index // coordinates, index % coordinates
            copies = torch.arange(len(index), device=z.device)
            moved = at.z.repeat(len(index), 1, 1, 1)
            moved[copies, :, j] = at.z_new[alternative, :, j]
            with torch.enable_grad(), noise.replay(new_axis=len(at.lead)):
                leaf = moved.requires_grad_()
                gradient = repeated_derivative(self(leaf.reshape(len(index), *z.shape)), leaf, 1)
            out[start:stop] = (gradient[copies, :, j] * along[alternative, :, j]).sum(-1)
        return at.unflatten(out.reshape(len(at.z_new), coordinates, points).transpose(1, 2))

    def is_differentiable(self, z: Tensor) -> bool:
        """Whether f has a gradient in z; costs one evaluation of f and of its gradient.

        Asked where f was evaluated before without a gradient: an error now means that f cannot be differentiated.
        """
        with torch.enable_grad():
            leaf = z.detach().clone().requires_grad_()
            try:
                value = self(leaf)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # f works where z needs no gradient: NumPy, say, refuses tensors that do
                return False
            if not value.requires_grad:
                return False
            (gradient,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
        return gradient is not None

    def exponential(self, z: Tensor) -> tuple[Tensor, Tensor] | None:
        r"""Return (ε, v) if in every coordinate f is a constant plus v_j ∝ $e^{\varepsilon_j z_j}$; else None."""
        return None


def check_order(order: int) -> None:
    """Raise unless `order` is the order of a derivative."""
    if order < 1:
        raise ValueError(f"the order of a derivative must be at least 1, got {order}.")


def repeated_derivative(value: Tensor, leaf: Tensor, order: int) -> Tensor:
    """Differentiate the sum of `value` with respect to `leaf` `order` times, entry by entry."""
    for n in range(1, order + 1):
        if not value.requires_grad:
            return torch.zeros_like(leaf)
        (value,) = torch.autograd.grad(
            value.sum(), leaf, create_graph=n < order, allow_unused=True, materialize_grads=True
        )
    return value.detach()
