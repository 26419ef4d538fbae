"""The network that learns a relaxation of the cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lightning_estimators.configurable import Configurable

__all__ = ["Surrogate"]


class Surrogate(Configurable, nn.Module):
    r"""$r_\phi$ of RELAX: a perceptron from raw relaxations (and the data) to one number.

    The size of the input is found at the first call, which the modules of this package make when they are built.

    Shapes: `(..., features) -> (...)`; with a context `(..., features), (..., more) -> (...)`.

    Args:
        hidden: Widths of the hidden layers, at least one. In the draft of Grathwohl et al. (2018) the toy problem has
            `[10]`, models of images have two to four layers of 200.
        activation: What follows each hidden layer; that toy has "tanh".
        signed: Whether $2x - 1$ enters in place of the features x, as in that toy.

    Source: Grathwohl et al. (2018), *Backpropagation through the void*, https://arxiv.org/abs/1711.00123, and sections
    5.1 and 5.2 of its draft.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> tuple(Surrogate(hidden=[10], activation="tanh", signed=True)(torch.zeros(6, 5, 3)).shape)
        (6, 5)
    """

    def __init__(
        self,
        hidden: Sequence[int] = (200, 200),
        activation: Literal["relu", "tanh"] = "relu",
        *,
        signed: bool = False,
    ) -> None:
        super().__init__()
        activations = {"relu": nn.ReLU, "tanh": nn.Tanh}
        if activation not in activations:
            raise ValueError(f"expected an activation of {sorted(activations)}, got {activation!r}.")
        if not hidden or min(hidden) < 1:
            raise ValueError(f"expected at least one hidden layer, of width at least 1 each, got {list(hidden)}.")
        self.signed = signed
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.LazyLinear(width), activations[activation]()]
        self.layers = nn.Sequential(*layers, nn.LazyLinear(1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map `(..., features)` to `(...)`.

        Args:
            x: Features.
            context: Further features, which stand behind those of x, broadcastable to them but for the last axis. The
                first layer multiplies them once, however many x there are, and derivatives in x cost nothing for them.
        """
        if self.signed:
            x, context = 2 * x - 1, None if context is None else 2 * context - 1
        first = cast(nn.Linear, self.layers[0])
        if context is None:
            out = self.layers(x)
        elif isinstance(first, nn.LazyLinear):  # sized by the features of both
            out = self.layers(torch.cat([x, context.expand(*x.shape[:-1], -1)], -1))
        else:
            of_x, of_context = torch.split(first.weight, [x.shape[-1], context.shape[-1]], 1)
            out = linear(x, of_x) + linear(context, of_context, first.bias)
            for layer in self.layers[1:]:
                out = layer(out)
        answer: Tensor = out.squeeze(-1)
        return answer

    def extra_repr(self) -> str:
        """Show the settings in `repr`."""
        return f"signed={self.signed}"
