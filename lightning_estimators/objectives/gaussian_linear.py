"""Gaussian likelihood with means that are linear in z: the cost of a linear decoder, or of linear regression."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_estimators.objectives.coordinates import Coordinates
from lightning_estimators.objectives.derivatives import check_order
from lightning_estimators.objectives.linear import LinearObjective

__all__ = ["GaussianLinear"]


class GaussianLinear(LinearObjective):
    r"""$f(z) = -\log p(x \mid z) = \sum_p \frac{(a_p - x_p)^2}{2 s^2} + \log s + \frac12 \log 2\pi$, $a = W z + c$.

    z is flattened over its event. The cost is quadratic in every coordinate. When coordinate j moves by δ, the means
    change by $w = \delta W_{\cdot j}$ (for vector coordinates, by W times the move of the vector), and the cost by
    $\langle a - x, w \rangle / s^2 + \lVert w \rVert^2 / 2s^2$. Derivatives above the second vanish, so the series of
    generalized stochastic backpropagation ends.

    Cost: changes, slopes and derivatives take two matrix products. For vector coordinates, the products of the columns
    of W within each coordinate come on top.

    Args:
        weight: W, shape `(P, D)`, D the number of entries of the event, categories included; also `(P,) + event_shape`.
        bias: c, shape `(P,)`, or None.
        target: x, broadcastable to `lead + (P,)`.
        scale: s, the standard deviation of every output.
        event_dim: How many of the last axes of z are the event, categories included.

    Raises:
        ValueError: The shapes of weight, bias and target do not fit each other, or the scale is not positive.

    Source: Echraibi et al. (2020), *Generalized stochastic backpropagation*, corollary 3.1, for h a square,
    https://hal.science/hal-02968975.

    Example:
        >>> import torch
        >>> f = GaussianLinear(torch.tensor([[1.0, -2.0]]), torch.zeros(1), target=torch.ones(1))
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        >>> f(z)
        tensor([0.9189, 1.4189])
        >>> f.coordinate_change(z, 1 - z)
        tensor([[ 0.5000,  2.0000],
                [-0.5000,  4.0000]])
    """

    degree = 2
    closed_derivatives = True
    closed_changes = True

    def __init__(
        self, weight: Tensor, bias: Tensor | None, target: Tensor, scale: float = 1.0, event_dim: int = 1
    ) -> None:
        super().__init__(weight, bias, event_dim)
        if target.ndim < 1 or target.shape[-1] != len(weight):
            raise ValueError(
                f"GaussianLinear expected a target of shape (..., {len(weight)}), one entry per row of weight "
                f"{tuple(weight.shape)}, got {tuple(target.shape)}. Flatten images before they become targets."
            )
        if not 0 < scale < math.inf:
            raise ValueError(f"GaussianLinear expected a positive scale, finite too, got {scale!r}.")
        self.target, self.scale = target, scale

    def value(self, z: Tensor) -> Tensor:
        """Return -log p(x | z), attached to W and c."""
        means = self.pre_activations(z)
        squares = ((means - self.target.to(means.dtype)) / self.scale).square().sum(-1)
        return squares / 2 + len(self.weight) * (math.log(self.scale) + math.log(2 * math.pi) / 2)

    def coordinate_change(self, z: Tensor, z_new: Tensor) -> Tensor:
        """Return the changes (shapes as in `Objective.coordinate_change`)."""
        at = Coordinates.of(z, z_new, self.event_dim)
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            slope, weight = self._slope(z, at)
            delta = (at.z_new - at.z).to(slope.dtype)
            # The exact change of a quadratic function: the slope, and half of the curvature along the move.
            change = (delta * (slope + self._bend(delta, weight) / 2)).sum(-1)
        return at.unflatten(change)

    def coordinate_derivative(self, z: Tensor, order: int = 1) -> Tensor:
        r"""Return the slope, the curvature $\sum_p W_{pj}^2 / s^2$, 0, ..."""
        check_order(order)
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            slope, weight = self._slope(z, Coordinates.of(z, z, self.event_dim))
            if order == 1:
                return slope.reshape(z.shape)
            curvature = weight.square().sum(0) / self.scale**2 if order == 2 else slope.new_zeros(())
            return curvature.expand(len(slope), slope[0].numel()).reshape(z.shape)

    def coordinate_slope(self, z: Tensor, z_new: Tensor, direction: Tensor | None = None) -> Tensor:
        """Return the slope at z plus the curvature along the move (shapes as in `Objective.coordinate_slope`)."""
        at = Coordinates.of(z, z_new, self.event_dim)
        along = at.directions(direction)
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            slope, weight = self._slope(z, at)
            delta = (at.z_new - at.z).to(slope.dtype)
            out = ((slope + self._bend(delta, weight)) * along.to(slope.dtype)).sum(-1)
        return at.unflatten(out)

    def is_differentiable(self, z: Tensor) -> bool:
        """Return True."""
        return True

    def _slope(self, z: Tensor, at: Coordinates) -> tuple[Tensor, Tensor]:
        """Return the gradient at z, shape `(L, J, K)`, and W, both in float32 or better."""
        dtype = torch.promote_types(torch.promote_types(self.weight.dtype, at.z.dtype), torch.float32)
        weight = self.weight.to(dtype)
        means = self.pre_activations_again(z, dtype)
        residuals = (means - self.target.to(dtype)).reshape(len(at.z), -1) / self.scale**2
        return (residuals @ weight).reshape(at.z.shape), weight

    def _bend(self, delta: Tensor, weight: Tensor) -> Tensor:
        """Return by how much the gradient in each coordinate changes when that coordinate moves; shape of delta."""
        _, _, coordinates, entries = delta.shape
        columns = weight.reshape(-1, coordinates, entries) / self.scale
        gram = torch.einsum("pja,pjb->jab", columns, columns)  # second derivatives within each coordinate
        return torch.einsum("sljb,jab->slja", delta, gram)
