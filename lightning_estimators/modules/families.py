"""Families of continuous latents: how a network's output parametrises them, and their log density entry by entry."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Beta, Dirichlet, Distribution, Gamma, Independent, Laplace, Normal
from torch.nn.functional import softplus

from lightning_estimators.distributions import base_distribution

__all__ = ["LATENT_FAMILIES", "Family", "log_densities", "positive"]

SCALE_FLOOR = 1e-3
"""Lower bound of scales and rates."""
SHAPE_FLOOR = 0.1
"""Lower bound of shapes (concentrations). At 0.1 one draw in 10,000 underflows in float32; at 0.01 half of them do."""


def positive(x: Tensor, floor: float) -> Tensor:
    """Map the output of a network through softplus to positive numbers above a floor, such that 0 is mapped to 1.

    Example:
        >>> positive(torch.tensor([-1e4, 0.0]), floor=0.1)
        tensor([0.1000, 1.0000])
    """
    return floor + softplus(x + math.log(math.expm1(1 - floor)))


@dataclass(frozen=True)
class Family:
    """A family of distributions whose parameters are the output of a network; output 0 gives its standard member.

    Attributes:
        make: Makes the distribution from as many parameters as there are floors, each of the shape of z.
        floors: The lower bound of each parameter that must be positive (see `positive`); None for the others.
        standard: Parameters of the standard member, such as location 0 and scale 1.
    """

    make: Callable[..., Distribution]
    floors: tuple[float | None, ...]
    standard: tuple[float, ...]

    def on(self, output: Tensor, event_shape: tuple[int, ...]) -> Distribution:
        """Return the distribution of z given the output of a network.

        Args:
            output: Shape `batch_shape + (len(floors) * size of the event,)`.
            event_shape: Shape of z; a Dirichlet variable extends over the last axis.
        """
        parts = output.reshape(*output.shape[:-1], len(self.floors), *event_shape).unbind(-len(event_shape) - 1)
        pairs = zip(parts, self.floors, strict=True)
        return self.of(*(part if floor is None else positive(part, floor) for part, floor in pairs))

    def of(self, *parameters: Tensor) -> Distribution:
        """Return the distribution of z given its parameters; all variables of a layer are one event."""
        # Not validated here: the training loop reports parameters that are not finite, and says at which step.
        base = self.make(*parameters, validate_args=False)
        return Independent(base, 1, validate_args=False)


LATENT_FAMILIES = {
    "normal": Family(Normal, (None, SCALE_FLOOR), (0.0, 1.0)),
    "laplace": Family(Laplace, (None, SCALE_FLOOR), (0.0, 1.0)),
    "gamma": Family(Gamma, (SHAPE_FLOOR, SCALE_FLOOR), (1.0, 1.0)),
    "beta": Family(Beta, (SHAPE_FLOOR, SHAPE_FLOOR), (1.0, 1.0)),
    "dirichlet": Family(Dirichlet, (SHAPE_FLOOR,), (1.0,)),
}


def log_densities(q: Distribution, z: Tensor) -> Tensor:
    """Return the log density as a sum of parts, one per entry of z, each a function of that entry only.

    Values that were rounded onto the boundary of the support are moved to the nearest number inside it, where the
    density is finite.

    Args:
        q: Normal, Laplace, gamma, beta or Dirichlet, in any number of `Independent` wrappers.
        z: Shape `sample_shape + batch_shape + event_shape` of q.

    Example:
        >>> q = Dirichlet(torch.tensor([1.0, 2.0, 3.0]))
        >>> z = torch.tensor([0.2, 0.3, 0.5])
        >>> bool(torch.isclose(log_densities(q, z).sum(), q.log_prob(z)))
        True
    """
    base = base_distribution(q)
    bounds = torch.finfo(z.dtype)
    if isinstance(base, Gamma):
        z = z.clamp_min(bounds.tiny)
    elif isinstance(base, Beta | Dirichlet):
        z = z.clamp(bounds.tiny, 1 - bounds.eps / 2)
    if isinstance(base, Dirichlet):
        alpha = base.concentration
        log_constant = torch.lgamma(alpha.sum(-1, keepdim=True)) / alpha.shape[-1] - torch.lgamma(alpha)
        return (alpha - 1) * z.log() + log_constant
    densities: Tensor = base.log_prob(z)
    return densities
