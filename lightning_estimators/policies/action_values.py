"""What an action is worth in a state, as far as it is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["ActionValues"]


class ActionValues(nn.Module):
    r"""Q(s, a) by a network, for samples of an action distribution: one-hot vectors, switches or real numbers.

    Shapes: states `(B, observation_size)` and actions `sample_shape + (B,) + event_shape` to `sample_shape + (B,)`, in
    at least float32.

    Args:
        network: Maps `(..., observation_size + entries of an action)` to `(..., 1)`.
        event_dim: Axes of one action.

    Example:
        >>> values = ActionValues(nn.Linear(3 + 2, 1), event_dim=2)
        >>> values(torch.zeros(5, 3), torch.zeros(7, 5, 1, 2)).shape  # a choice between two, seven times in five states
        torch.Size([7, 5])
    """

    def __init__(self, network: nn.Module, event_dim: int) -> None:
        super().__init__()
        self.network, self.event_dim = network, event_dim

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        """Return Q of each state and action.

        Raises:
            ValueError: The network returns another shape.
        """
        joined = self._joined(states, actions)
        return _shaped(self.network(joined), joined)

    def fixed(self, states: Tensor, actions: Tensor) -> Tensor:
        """Return the same without a gradient in the network's parameters; gradients flow into the actions."""
        parameters = {name: p.detach() for name, p in self.network.named_parameters()}
        joined = self._joined(states, actions)
        return _shaped(functional_call(self.network, parameters, (joined,)), joined)

    def _joined(self, states: Tensor, actions: Tensor) -> Tensor:
        flat = actions.flatten(-self.event_dim).to(states.dtype)
        return torch.cat([states.expand(*flat.shape[:-1], -1), flat], -1)


def _shaped(values: Tensor, joined: Tensor) -> Tensor:
    expected = (*joined.shape[:-1], 1)
    if values.shape != expected:
        raise ValueError(
            f"the network of ActionValues must return one number for each state and action, shape {expected}; it "
            f"returned {tuple(values.shape)}."
        )
    return values.squeeze(-1).to(torch.promote_types(values.dtype, torch.float32))
