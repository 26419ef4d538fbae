"""Costs that begin with a linear layer, whose output is updated and not recomputed when one coordinate of z moves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from lightning_estimators.noise import CommonNoise
from lightning_estimators.objectives.coordinates import Coordinates
from lightning_estimators.objectives.derivatives import repeated_derivative
from lightning_estimators.objectives.linear import LinearObjective

__all__ = ["FirstLayerLinear"]


class FirstLayerLinear(LinearObjective):
    r"""$f(z) = \text{rest}(W z + c)$, z flattened over its event axes.

    When coordinate j moves by δ, the pre-activation $W z + c$ changes by δ times column j of W. `rest` may be any
    function. If it is random (a nested estimator), it is evaluated with the same noise at every changed point.

    Cost: changes take one evaluation of `rest` for each coordinate and alternative, and slopes also one of its
    gradient, in chunks of `chunk_bytes` of pre-activations. The first layer, which is the largest where there are more
    latents than hidden units, is evaluated once.

    Args:
        weight: W, shape `(H, D)`, D the number of entries of the event, categories included; also `(H,) + event_shape`.
        bias: c, shape `(H,)`, or None.
        rest: Maps pre-activations of shape `lead + (H,)` to costs of shape `lead`, for any number of axes in `lead`.
        event_dim: How many of the last axes of z are the event, categories included.

    Raises:
        ValueError: The shapes of weight and bias do not fit each other.

    Example:
        >>> import torch
        >>> W, c = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.zeros(2)
        >>> f = FirstLayerLinear(W, c, lambda h: h.tanh().sum(-1))
        >>> z = torch.tensor([[1.0, 0.0]])
        >>> f.coordinate_change(z, 1 - z)  # tanh(0) - tanh(1), and tanh(3) - tanh(1) + tanh(1)
        tensor([[-0.7616,  0.9951]])
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, rest: Callable[[Tensor], Tensor], event_dim: int = 1
    ) -> None:
        super().__init__(weight, bias, event_dim)
        self.rest = rest

    def value(self, z: Tensor) -> Tensor:
        """Return rest(W z + c), attached to W, c and whatever `rest` uses."""
        return self.rest(self.pre_activations(z))

    def coordinate_change(self, z: Tensor, z_new: Tensor) -> Tensor:
        """Return the changes (shapes as in `Objective.coordinate_change`)."""
        at = Coordinates.of(z, z_new, self.event_dim)
        points, coordinates, entries = at.z.shape
        with torch.no_grad():
            first = self.pre_activations_again(z, self.weight.dtype)
            flat = first.reshape(points, -1)
            columns = self.weight.T.reshape(coordinates, entries, -1)

            def moved(index: Tensor) -> Tensor:
                alternative, j = index // coordinates, index % coordinates
                delta = (at.z_new[alternative, :, j] - at.z[:, j].transpose(0, 1)).to(flat.dtype)
                return torch.baddbmm(flat, delta, columns[j].to(flat.dtype)).reshape(len(index), *first.shape)

            change = self._changes(self.rest, first, moved, len(at.z_new) * coordinates)
        return at.unflatten(change.reshape(len(at.z_new), coordinates, points).transpose(1, 2))

    def chosen_changes(self, z: Tensor, z_new: Tensor, which: tuple[Tensor, Tensor], here: Tensor | None) -> Tensor:
        """Return the selected changes (shapes as in `Objective.chosen_changes`)."""
        at = Coordinates.of(z, z_new, self.event_dim)
        points = torch.arange(len(at.z), device=z.device)
        with torch.no_grad():
            first = self.pre_activations_again(z, self.weight.dtype)
            width = at.z.shape[-1]
            rows = self.weight.T.reshape(at.z.shape[1:].numel(), -1).to(first.dtype).contiguous()
            entries = torch.arange(width, device=z.device)

            def moved(index: Tensor) -> Tensor:
                alternative, j = which[0][index], which[1][index]
                delta = (at.z_new[alternative, points, j] - at.z[points, j]).to(first.dtype).flatten(0, 1)
                # The sum of the columns of W for the entries that move, times their moves; none of them is copied.
                of_entries = (width * j.unsqueeze(-1) + entries).flatten(0, 1)
                step = embedding_bag(of_entries, rows, per_sample_weights=delta, mode="sum")
                return step.reshape(len(index), *first.shape).add_(first)

            return self._changes(self.rest, first, moved, len(which[0]), here).flatten(1)

    def coordinate_slope(self, z: Tensor, z_new: Tensor, direction: Tensor | None = None) -> Tensor:
        """Return the slopes: the gradient of `rest` at the moved pre-activation, along the column of W."""
        at = Coordinates.of(z, z_new, self.event_dim)
        along = at.directions(direction)
        points, coordinates, entries = at.z.shape
        count = len(at.z_new) * coordinates
        with torch.no_grad():
            first = self.pre_activations_again(z, self.weight.dtype)
            columns = self.weight.T.reshape(coordinates, entries, -1).to(first.dtype)
        out = first.new_empty(count, points)
        noise = CommonNoise(z.device)
        for start, stop in self._chunks(count, 3 * first.numel() * first.element_size(), z.device):
            index = torch.arange(start, stop, device=z.device)
            alternative, j = index // coordinates, index % coordinates
            with torch.no_grad():
                delta = (at.z_new[alternative, :, j] - at.z[:, j].transpose(0, 1)).to(first.dtype)
                moved = torch.baddbmm(first.reshape(points, -1), delta, columns[j])
                tangent = along[alternative, :, j].to(first.dtype) @ columns[j]
            with torch.enable_grad(), noise.replay(new_axis=len(at.lead)):
                leaf = moved.requires_grad_()
                gradient = repeated_derivative(self.rest(leaf.reshape(len(index), *first.shape)), leaf, 1)
            out[start:stop] = (gradient * tangent).sum(-1)
        return at.unflatten(out.reshape(len(at.z_new), coordinates, points).transpose(1, 2))
