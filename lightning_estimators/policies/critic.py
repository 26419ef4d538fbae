"""What a state is worth, as far as it is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_estimators.arguments import CheckedArguments
from lightning_estimators.rollout import Rollout

__all__ = ["Critic"]


class Critic(CheckedArguments, nn.Module):
    """V(s), by a network; it holds its answers to their shape, and knows what follows the steps of a rollout.

    Shapes: `(B, observation_size) -> (B,)`, in at least float32.

    Args:
        network: Maps `(B, observation_size)` to `(B, 1)` or `(B,)`.

    Example:
        >>> import torch
        >>> Critic(nn.Linear(3, 1))(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, states: Tensor) -> Tensor:
        """Return V of each state.

        Raises:
            ValueError: The network returns another shape.
        """
        values: Tensor = self.network(states)
        if values.shape not in ((len(states), 1), (len(states),)):
            raise ValueError(
                f"the critic must map {len(states)} observations to one number each, shape ({len(states)}, 1) or "
                f"({len(states)},); it returned {tuple(values.shape)}."
            )
        return values.reshape(len(states)).to(torch.promote_types(values.dtype, torch.float32))

    @torch.no_grad()
    def following(self, rollout: Rollout, values: Tensor) -> Tensor:
        """Return V of the state that each step of a rollout led to, shape (T, N), without gradient.

        It is 0 where the episode terminated. The network is evaluated only where that state is not the one of the next
        step: at the end of the rollout, and where an episode was cut off.

        Args:
            rollout: What was acted.
            values: V of the state before each step, shape (T, N).
        """
        following = torch.cat([values[1:], torch.zeros_like(values[:1])])
        unseen = rollout.truncated.clone()
        unseen[-1] = True
        unseen &= rollout.terminated.logical_not()
        if unseen.any():
            following[unseen] = self(rollout.next_observations[unseen]).to(following.dtype)
        return following.masked_fill(rollout.terminated, 0.0)
