"""How much better than expected the steps of a rollout went."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["generalized_advantages", "less_the_others"]


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
        following, advantages = torch.zeros_like(errors[0]), []
        for error, share in zip(reversed(errors.unbind()), reversed(decay.unbind()), strict=True):
            following = torch.addcmul(error, share, following)
            advantages.append(following)
    return torch.stack(advantages[::-1])


def less_the_others(advantages: Tensor) -> Tensor:
    r"""Return $A_{tn} - \frac{1}{N - 1} \sum_{m \ne n} A_{tm}$: advantages less their mean in the other environments.

    Environments are independent of one another, so the mean of the others is a baseline that does not depend on the
    action, and the policy gradient is as unbiased as without it. To subtract the mean of all of them would scale the
    gradient by (N - 1)/N; to subtract that of the whole batch is biased, since an action changes later advantages.

    Args:
        advantages: Shape (T, N), one column for each environment; further axes may follow.

    Raises:
        ValueError: There is one environment only.

    Source: Kool et al. (2019), *Buy 4 REINFORCE samples, get a baseline for free!*,
    https://openreview.net/forum?id=r1lgTGL5DE, with environments in place of samples.

    Example:
        >>> import torch
        >>> less_the_others(torch.tensor([[1.0, 2.0, 6.0]]))
        tensor([[-3.0000, -1.5000,  4.5000]])
    """
    count = advantages.shape[1]
    if count < 2:
        raise ValueError("a baseline from the other environments needs at least two of them in each process, got 1.")
    return (advantages - advantages.mean(1, keepdim=True)) * (count / (count - 1))
