"""The interface of objectives: how f changes when one coordinate of z moves, and its derivatives in each coordinate.

These two are all that generalized stochastic backpropagation needs to know of f.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lightning_estimators.arguments import CheckedArguments
from lightning_estimators.noise import CommonNoise
from lightning_estimators.norm_layers import norms_kept
from lightning_estimators.objectives.answers import as_costs
from lightning_estimators.objectives.chunks import EvaluatedInChunks, as_floating
from lightning_estimators.objectives.coordinates import Coordinates
from lightning_estimators.objectives.derivatives import check_order, differentiated_twice, repeated_derivative

__all__ = ["Objective"]


class Objective(CheckedArguments, EvaluatedInChunks, ABC):
    """A cost f(z) that can say how it changes with one coordinate.

    Implementing one:

    1. Write `value`, vectorised over any number of leading axes and attached to the parameters that f depends on.
    2. Override `coordinate_change` if the structure of f makes it cheaper than evaluating f at every changed point.
       (`_changes` helps: given a function that lists the points, it evaluates f at all of them, in chunks of bounded
       memory and with the same noise for all.)
    3. Override `coordinate_derivative` if the derivatives have a closed form.
    4. In the tests, compare 2 and 3 with the methods of this class, in float64.

    Attributes (those of `EvaluatedInChunks` come on top):
        event_dim: How many of the last axes of z are the event, categories of one-hot variables included.
        degree: If f is a polynomial in every coordinate, its degree: derivatives of higher order are zero, so the
            series of generalized stochastic backpropagation ends there. None for other costs.
        closed_derivatives: Whether `coordinate_derivative` is cheap at any order.
        closed_changes: Whether computing all changes costs about as much as evaluating f once. If so, estimating the
            changes from a random selection (`StochasticBackprop(num_changes=...)`) would save nothing.
    """

    event_dim: int = 1
    degree: int | None = None
    closed_derivatives: bool = False
    closed_changes: bool = False

    @abstractmethod
    def value(self, z: Tensor) -> Tensor:
        """Return f(z), of the shape of z without its event axes, attached to the parameters that f depends on."""

    def __call__(self, z: Tensor) -> Tensor:
        """Return f(z), after checking its shape."""
        out = as_costs(self.value(z), z, self.event_dim)
        return as_floating(out, z)

    def coordinate_change(self, z: Tensor, z_new: Tensor) -> Tensor:
        r"""Return how f changes when one coordinate of z moves, for every coordinate; without gradient.

        Entry j is $f(z \text{ with } z_j := z_j^{new}) - f(z)$. If f is random itself (a nested estimator), it is
        evaluated with the same noise at every point, so that the differences contain no noise.

        Cost: in this class one evaluation of f for each coordinate and alternative, and one of f(z), vectorised in
        chunks.

        Args:
            z: The point, shape `lead + event_shape`.
            z_new: The new coordinates. For scalar coordinates: of the shape of z. For one-hot coordinates, whose
                categories are the last event axis: A alternatives for each coordinate, shape `(A,)` + the shape of z,
                each a one-hot vector.

        Returns:
            For scalar coordinates: a tensor of the shape of z. For one-hot coordinates: of shape `(A,)` + the shape of
            z without the category axis.

        Raises:
            ValueError: The shapes of z and z_new fit neither kind of coordinates.

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
        """Return the changes, exactly or as estimates, for a rule that multiplies each of them by its weight.

        The gradient rules call this method. In this class it is `coordinate_change`, and the weights are ignored.
        `SampledChanges`, which evaluates only a random selection of the changes, selects by the weights: the larger
        the weight of a change, the more it matters for the gradient.

        Args:
            z: As for `coordinate_change`.
            z_new: As for `coordinate_change`.
            weights: The numbers by which the rule multiplies the changes; only their absolute values count. Of the
                shape of the result, or broadcastable to it.
        """
        return self.coordinate_change(z, z_new)

    def class_change(self, z: Tensor) -> Tensor | None:
        """Return how f changes when a one-hot coordinate becomes each of its categories; without gradient.

        Entry (j, k) is f(z with category k at j) - f(z). None if f has no faster way than `weighted_change`.

        Args:
            z: One-hot along the last axis, shape `lead + event_shape`.

        Returns:
            Tensor of the shape of z, or None.
        """
        return None

    def chosen_changes(self, z: Tensor, z_new: Tensor, which: tuple[Tensor, Tensor], here: Tensor | None) -> Tensor:
        r"""Return n selected changes at each point, instead of those of all coordinates; without gradient.

        Cost: in this class n evaluations of f at every point, and one of f(z) unless `here` is given.

        Args:
            z: The points, shape `lead + event_shape`.
            z_new: As for `coordinate_change`.
            which: The indices of the selected alternatives, and those of the selected coordinates, each of shape
                `(n, points)`. `points` is the number of points, over all axes of `lead`; a coordinate's index counts
                over all axes of the event.
            here: f(z), shape `lead`, if it is known already and f is not random; otherwise None.

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

        The derivatives are exact. They are zero where f does not depend on z through differentiable operations.

        Cost: in this class one backward pass of f for order 1. For order n > 1, f is evaluated at one copy of z for
        each coordinate and differentiated n times in turn; each of these backward passes takes about three times as
        long as the one before, so orders above 4 are for small problems.

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
                with norms_kept():
                    return repeated_derivative(self(leaf), leaf, 1)
            lead = z.shape[: z.ndim - self.event_dim]
            flat = z.detach().reshape(lead.numel(), -1 if z.numel() else 0)
            out = torch.empty_like(flat)
            noise = CommonNoise(z.device)
            # The memory estimate: the graph of each backward pass is about twice as large as what it differentiates.
            for start, stop in self._chunks(flat.shape[1], z.numel() * z.element_size() * 2**order, z.device):
                index = torch.arange(start, stop, device=z.device)
                # Copy i depends on `moved` through coordinate i only, so the derivatives of the sum over copies are
                # those in one coordinate each, and no mixed ones.
                moved = flat[:, start:stop].T.clone().requires_grad_()
                points = flat.repeat(len(index), 1, 1)
                points[index - start, :, index] = moved
                with noise.replay(new_axis=len(lead)), differentiated_twice():
                    value = self(points.reshape(len(index), *z.shape))
                out[:, start:stop] = repeated_derivative(value, moved, order).T
        return out.reshape(z.shape)

    def coordinate_slope(self, z: Tensor, z_new: Tensor, direction: Tensor | None = None) -> Tensor:
        r"""Return, for every coordinate, the derivative of f in it after it alone has moved; without gradient.

        Entry j is $\partial f / \partial z_j$ at z with $z_j := z_j^{new}$. Where a coordinate is a vector (such as a
        Dirichlet variable), entry j is the derivative of f in the given direction of that vector.

        Cost: in this class one evaluation of f and of its gradient for each coordinate and alternative, vectorised in
        chunks.

        Args:
            z: The point, shape `lead + event_shape`.
            z_new: The moved coordinates, as for `coordinate_change`.
            direction: The directions, for vector coordinates only; of the shape of z_new.

        Returns:
            Tensor of the shape that `coordinate_change` returns.

        Raises:
            ValueError: The shapes do not fit each other.

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

        Call it only where f was evaluated at z before, without a gradient: then an error raised inside f means that f
        cannot be differentiated, and not that it cannot be evaluated.
        """
        with torch.enable_grad(), norms_kept():
            leaf = z.detach().clone().requires_grad_()
            try:
                value = self(leaf)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # such as NumPy's, which takes no tensors that require a gradient
                return False
            if not value.requires_grad:
                return False
            (gradient,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
        return gradient is not None

    def exponential(self, z: Tensor) -> tuple[Tensor, Tensor] | None:
        r"""Return (ε, v) if f is exponential in every coordinate; None, as here, if it is not.

        That is: as a function of $z_j$ alone, f is a constant plus $v_j$, and $v_j$ is proportional to
        $e^{\varepsilon_j z_j}$. Both tensors have, or broadcast to, the shape of z.
        """
        return None
