"""The random shifts of the jump form."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from lightning_estimators.distributions import distribution_parameters
from lightning_estimators.noise import uniform

__all__ = ["exponential", "jump_noise"]


def jump_noise(q: Distribution) -> Tensor:
    """Draw U(0, 1) noise, one number for each parameter entry of q."""
    like = next(iter(distribution_parameters(q).values()))
    lead = len(q.batch_shape)
    return uniform(like.shape[:lead], like.shape[lead:], dtype=like.dtype, device=like.device)


def exponential(q: Distribution) -> Tensor:
    """Draw standard exponential noise, one number for each parameter entry of q."""
    return -jump_noise(q).log()
