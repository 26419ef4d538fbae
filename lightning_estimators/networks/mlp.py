"""A multilayer perceptron."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from lightning_estimators.configurable import Configurable

__all__ = ["MLP"]


class MLP(Configurable, nn.Module):
    """Linear layers with an activation between them; without hidden layers, one linear layer.

    The first layer is linear and kept apart from the rest (`first`, `rest`), because the change of its output when one
    input changes is a rank-one update: what makes exact rules cheap (`objectives.FirstLayerLinear`).

    Shapes: `(..., in_features) -> (..., out_features)`.

    Args:
        in_features: Size of the input.
        hidden: Widths of the hidden layers, possibly none.
        out_features: Size of the output.
        activation: Makes the activation that follows each hidden layer.

    Example:
        >>> import torch
        >>> network = MLP(3, [5, 4], 2)
        >>> x = torch.zeros(7, 3)
        >>> tuple(network(x).shape)
        (7, 2)
        >>> bool((network.rest(network.first(x)) == network(x)).all())
        True
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        out_features: int,
        activation: Callable[[], nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__()
        widths = [in_features, *hidden, out_features]
        if any(width < 1 for width in widths):
            raise ValueError(f"every width of an MLP must be at least 1, got {widths}.")
        self.first = nn.Linear(widths[0], widths[1])
        following: list[nn.Module] = []
        for width, width_next in pairwise(widths[1:]):
            following += [activation(), nn.Linear(width, width_next)]
        self.rest = nn.Sequential(*following)

    @property
    def last(self) -> nn.Linear:
        """The layer whose output is the output of the network."""
        layers = [self.first, *self.rest]
        last = layers[-1]
        if not isinstance(last, nn.Linear):
            raise TypeError(f"the last layer of an MLP is linear, got {type(last).__name__}: `rest` was changed.")
        return last

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., in_features)` to `(..., out_features)`."""
        out: Tensor = self.rest(self.first(x))
        return out
