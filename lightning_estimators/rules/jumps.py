"""The noise from which the rules draw the random jumps of one coordinate."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from lightning_estimators.distributions import distribution_parameters
from lightning_estimators.noise import uniform

__all__ = ["exponential", "jump_noise"]


def jump_noise(q: Distribution) -> Tensor:
    """Draw numbers from U(0, 1), one for each entry of a parameter of q."""
    like = next(iter(distribution_parameters(q).values()))
    lead = len(q.batch_shape)
    return uniform(like.shape[:lead], like.shape[lead:], dtype=like.dtype, device=like.device)


def exponential(q: Distribution) -> Tensor:
    """Draw exponential numbers of mean 1, one for each entry of a parameter of q."""
    return -jump_noise(q).log()
