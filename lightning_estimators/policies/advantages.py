"""How much better than expected the steps of a rollout went."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["generalized_advantages"]


def generalized_advantages(
    rewards: Tensor, values: Tensor, next_values: Tensor, ended: Tensor, *, gamma: float, gae_lambda: float
) -> Tensor:
    r"""Return generalized advantage estimates of the steps of a rollout.

    $A_t = \delta_t + \gamma \lambda A_{t+1}$ within an episode, with $\delta_t = r_t + \gamma V(s_{t+1}) - V(s_t)$.
    With λ = 1 the advantage is the discounted return to go, less V, and the policy gradient is unbiased for any V. With
    λ below 1 it is unbiased for the true V only; a wrong V then biases it, the more the smaller λ is. Where V = 0 and
    λ = 1 it is the return to go itself.

    Args:
        rewards: Shape (T, N), one column for each environment.
        values: V of the state before each step, shape (T, N).
        next_values: V of the state that each step led to, shape (T, N): 0 where the episode terminated there. Where it
            was cut off, and at the end of the rollout, it stands for the rewards that were not seen.
        ended: Whether the episode ended with this step, terminated or truncated; boolean, shape (T, N).
        gamma: The discount γ, in [0, 1].
        gae_lambda: λ, in [0, 1].

    Returns:
        Tensor of shape (T, N), without gradient.

    Source: Schulman et al. (2016), *High-dimensional continuous control using generalized advantage estimation*,
    eqs. 11-16, https://arxiv.org/abs/1506.02438.

    Example:
        >>> import torch
        >>> zeros, ended = torch.zeros(3, 1), torch.tensor([[False], [True], [False]])
        >>> generalized_advantages(torch.ones(3, 1), zeros, zeros, ended, gamma=0.5, gae_lambda=1.0).flatten()
        tensor([1.5000, 1.0000, 1.0000])
    """
    with torch.no_grad():
        errors = rewards + gamma * next_values - values
        decay = gamma * gae_lambda * ended.logical_not().to(errors.dtype)
        advantages = torch.empty_like(errors)
        following = torch.zeros_like(errors[0])
        for t in reversed(range(len(errors))):
            following = torch.addcmul(errors[t], decay[t], following)
            advantages[t] = following
    return advantages
