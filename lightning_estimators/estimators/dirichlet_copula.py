"""Uniform noise for samples that shall differ: each is uniform, and the more one is, the less are the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_estimators.noise import uniform

__all__ = ["both_below", "uniform_roots"]


def uniform_roots(
    batch_shape: Sequence[int], event_shape: Sequence[int], *, dtype: torch.dtype, device: torch.device
) -> Tensor:
    r"""Draw $v_k = 1 - d_k$ with d uniform on the simplex, so that $v_k^{K - 1}$ is uniform on (0, 1).

    K is the length of the first axis, over which the d_k add up to 1; all other entries are independent. Two of K
    samples are as antithetic as two of K exchangeable ones can be: for K = 2 they are u and 1 − u.

    Args:
        batch_shape: K, and axes as for `noise.uniform`.
        event_shape: As for `noise.uniform`.
        dtype: As for `noise.uniform`.
        device: As for `noise.uniform`.

    Returns:
        Tensor of shape `batch_shape + event_shape`.

    Source: Dimitriev & Zhou (2021), *ARMS: antithetic-REINFORCE-multi-sample gradient for binary variables*,
    https://arxiv.org/abs/2105.14141.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> v = uniform_roots((3, 100_000), (), dtype=torch.float64, device=torch.device("cpu"))
        >>> v.square().mean(1).round(decimals=2), v.sum(0).unique().round(decimals=6).unique()
        (tensor([0.5000, 0.5000, 0.5000], dtype=torch.float64), tensor([2.], dtype=torch.float64))
    """
    exponential = -uniform(batch_shape, event_shape, dtype=dtype, device=device).log()
    # Added up rather than subtracted from the sum of all: small ones keep their digits.
    others = torch.zeros_like(exponential)
    for shift in range(1, len(exponential)):
        others = others + exponential.roll(shift, 0)
    return others / (others + exponential)


def both_below(a: Tensor, b: Tensor, power: int) -> Tensor:
    r"""Return the probability $\max(a + b - 1, 0)^{K - 1}$ that one of K noises is below a, and another below b.

    Args:
        a: Where $v_i = 1 - d_i$ (see `uniform_roots`) shall be below.
        b: Where $v_j$ shall be below.
        power: K − 1.
    """
    return (a + b - 1).clamp_min(0).pow(power)
