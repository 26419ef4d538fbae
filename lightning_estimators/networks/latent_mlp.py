"""A perceptron that reads latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from torch import Tensor, nn

from lightning_estimators.networks.mlp import MLP

__all__ = ["LatentMLP"]


class LatentMLP(MLP):
    r"""An `MLP` on latents z, which enter as $2z - 1$ where they are in {0, 1} (or relaxed, between them).

    Shapes: `(..., *event_shape) -> (..., out_features)`.

    Args:
        event_shape: Shape of the latent vector: `(D,)`, or `(D, K)` for one-hot categoricals and Dirichlet variables.
        hidden: Widths of the hidden layers, possibly none.
        out_features: Size of the output.
        activation: Makes the activation that follows each hidden layer.
        signed: Whether $2z - 1$ enters in place of z.

    Source: section 5.2 of the draft of Grathwohl et al. (2018), https://arxiv.org/abs/1711.00123, which has variables
    in {−1, 1}.

    Example:
        >>> import torch
        >>> network = LatentMLP((4, 3), [], 2)
        >>> z = torch.rand(5, 4, 3)
        >>> weight, bias = network.affine()
        >>> tuple(weight.shape)
        (2, 4, 3)
        >>> torch.allclose(network(z), torch.einsum("pdk,bdk->bp", weight, z) + bias, atol=1e-6)
        True
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        hidden: Sequence[int],
        out_features: int,
        activation: Callable[[], nn.Module] = nn.Tanh,
        *,
        signed: bool = True,
    ) -> None:
        super().__init__(prod(event_shape), hidden, out_features, activation)
        self.event_shape, self.signed = tuple(event_shape), signed

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return weight `(width, *event_shape)` and bias `(width,)` of the first layer as a map of z itself.

        `W (2z - 1) + c` is `2W z + (c - W 1)`. Applying `rest` to it gives the output.
        """
        weight, bias = self.first.weight, self.first.bias
        if not self.signed:
            return weight.reshape(-1, *self.event_shape), bias
        return 2 * weight.reshape(-1, *self.event_shape), bias - weight.sum(1)

    def forward(self, z: Tensor) -> Tensor:
        """Map `(..., *event_shape)` to `(..., out_features)`."""
        z = z.flatten(z.ndim - len(self.event_shape)).to(self.first.weight.dtype)
        return super().forward(2 * z - 1 if self.signed else z)
