"""Samples: right at the edges of a family, where torch's own are not, and of shared noise where that is possible."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Beta,
    Dirichlet,
    Distribution,
    Gamma,
    Independent,
    MultivariateNormal,
    OneHotCategorical,
    TransformedDistribution,
)
from torch.nn.functional import logsigmoid

from lightning_estimators.distributions.composite import is_learned
from lightning_estimators.distributions.delta import Delta
from lightning_estimators.distributions.discrete import probabilities
from lightning_estimators.distributions.parameters import base_distribution, distribution_parameters
from lightning_estimators.noise import is_coupled, uniform

__all__ = [
    "can_be_coupled",
    "check_can_be_coupled",
    "draw",
    "has_small_concentration",
    "log_gamma_sample",
    "reparameterized_sample",
    "sample",
    "standard_gamma",
]


def sample(q: Distribution) -> Tensor:
    """Draw one sample, shape `batch_shape + event_shape`, without gradient.

    Bernoulli and one-hot categorical samples invert the distribution function, so that noise shared by
    `noise.CommonNoise` gives equal samples wherever parameters are equal; what has probability 0 is never drawn. Gamma,
    beta and Dirichlet samples are right however small the concentrations.

    Raises:
        TypeError: Samples are to be coupled, and q has no inverse distribution function (`can_be_coupled`).
    """
    base = base_distribution(q)
    with torch.no_grad():
        if isinstance(base, Bernoulli):
            probs = base.probs
            u = uniform(q.batch_shape, q.event_shape, dtype=probs.dtype, device=probs.device)
            return torch.lt(u, probs, out=torch.empty_like(probs))  # several times as fast as to compare, then convert
        if isinstance(base, OneHotCategorical):
            probs = probabilities(base)
            u = uniform(q.batch_shape, (*q.event_shape[:-1], 1), dtype=probs.dtype, device=probs.device)
            # Noise below the sum of the probabilities, which rounding may leave off 1, is below the last sum at which a
            # possible class enters: neither out of range nor in a class of probability 0.
            sums = probs.cumsum(-1)
            index = (u * sums[..., -1:] >= sums).sum(-1, keepdim=True)
            return torch.zeros_like(probs).scatter_(-1, index, 1.0)
        if is_coupled():
            return _by_inverse_cdf(q)
        if isinstance(base, Gamma | Beta | Dirichlet):
            return draw(q)[0]
        return q.sample()


def reparameterized_sample(q: Distribution) -> Tensor:
    """Draw one sample that is attached to the parameters, as that of `rsample` is, which q must have.

    Raises:
        TypeError: As for `sample`.
    """
    return _by_inverse_cdf(q) if is_coupled() else q.rsample()


def can_be_coupled(q: Distribution) -> bool:
    """Whether a sample of q is a function of as many uniform numbers, so that samples can be coupled through these.

    It is where torch inverts the distribution function (`icdf`) of q, or of what q transforms; and for discrete
    variables with a finite support, multivariate normal ones and point masses.
    """
    base = base_distribution(q)
    if isinstance(base, Bernoulli | OneHotCategorical | MultivariateNormal | Delta) or _has_icdf(base):
        return True
    return isinstance(base, TransformedDistribution) and can_be_coupled(base.base_dist)


def check_can_be_coupled(q: Distribution) -> None:
    """Raise unless samples of q can be coupled (`can_be_coupled`).

    Raises:
        TypeError: They cannot.
    """
    if not can_be_coupled(q):
        raise TypeError(
            f"samples of {type(base_distribution(q)).__name__} cannot be coupled: torch has no inverse of its "
            'distribution function (icdf), to make them from uniform noise. Use coupling="independent".'
        )


def draw(q: Distribution, *, attached: bool = False) -> tuple[Tensor, Tensor]:
    """Draw one sample and return it with its log density, as a function of the parameters at that sample.

    The density may leave out factors that do not depend on the parameters: what counts is its gradient, the score. So
    it can be that of the logarithm of a gamma, beta or Dirichlet variable, which does not underflow where the variable
    does, and that of what a transformed distribution transforms, which need not be found again from the result.

    Args:
        q: Any distribution with `log_prob`.
        attached: Whether the sample is attached to the parameters, as that of `rsample` is, which q must have then.

    Returns:
        Sample, shape `batch_shape + event_shape`, and log density, shape `batch_shape`.
    """
    with torch.set_grad_enabled(attached and torch.is_grad_enabled()):
        z, y = _draw(q, attached)
    return z, _log_density(q, y.detach())


def log_gamma_sample(shape: Tensor, u: Tensor) -> Tensor:
    """Draw log g, g ~ Γ(shape, 1), which stays finite where g underflows: Γ(a) = Γ(a + 1) U^(1/a).

    Args:
        shape: a; the sample is attached to it.
        u: U(0, 1) noise.
    """
    return standard_gamma(shape + 1).log() + u.log() / shape


def standard_gamma(shape: Tensor) -> Tensor:
    """Draw g ~ Γ(shape, 1), attached to the shape; the smallest positive number of the dtype where g underflows."""
    if is_coupled():
        raise TypeError("samples that are made from gamma variables cannot be coupled.")
    return Gamma(shape, torch.ones_like(shape), validate_args=False).rsample()


def has_small_concentration(q: Distribution) -> bool:
    """Whether q is a gamma, beta or Dirichlet variable of which torch's samples may underflow.

    The probability that Γ(a) falls below the smallest number ν is about ν^a, for which the limit here is 3e-8.
    """
    base = base_distribution(q)
    if isinstance(base, Beta):
        least = torch.minimum(base.concentration1, base.concentration0)
    elif isinstance(base, Gamma | Dirichlet):
        least = base.concentration
    else:
        return False
    return bool((least < {torch.float64: 0.025}.get(least.dtype, 0.2)).any())


def _draw(q: Distribution, attached: bool) -> tuple[Tensor, Tensor]:  # noqa: FBT001
    """Draw a sample, and what its density is worked out from."""
    if _is_transformed(q):
        x, y = _draw(q.base_dist, attached)
        for transform in q.transforms:
            x = transform(x)
        return x, y
    base = base_distribution(q)
    if isinstance(base, Gamma):
        y = _log_gammas(q, base.concentration) - base.rate.log()
        return y.exp().clamp_min(torch.finfo(y.dtype).tiny), y
    if isinstance(base, Dirichlet):
        # Not torch's: where every gamma underflows (shapes near 0) it answers the centre, not a corner.
        y = _log_gammas(q, base.concentration).log_softmax(-1)
        return y.exp().clamp_min(torch.finfo(y.dtype).tiny), y
    if isinstance(base, Beta):
        y = _log_gammas(q, base.concentration1) - _log_gammas(q, base.concentration0)
        limits = torch.finfo(y.dtype)
        return y.sigmoid().clamp(limits.tiny, 1 - limits.eps / 2), y  # where log_prob is finite
    z = reparameterized_sample(q) if attached else sample(q)
    return z, z


def _by_inverse_cdf(q: Distribution) -> Tensor:
    check_can_be_coupled(q)
    return _inverted(q, len(q.batch_shape), next(iter(distribution_parameters(q).values())))


def _inverted(q: Distribution, batch_axes: int, like: Tensor) -> Tensor:
    """Draw a sample, attached, as a function of uniform noise with so many batch axes."""
    base = base_distribution(q)
    if isinstance(base, Delta):
        return base.rsample()
    if isinstance(base, TransformedDistribution) and not _has_icdf(base):
        x = _inverted(base.base_dist, batch_axes, like)
        for transform in base.transforms:
            x = transform(x)
        return x
    shape = base.batch_shape + base.event_shape
    u = uniform(shape[:batch_axes], shape[batch_axes:], dtype=like.dtype, device=like.device)
    if isinstance(base, MultivariateNormal):
        standard = torch.special.ndtri(u)
        return torch.add(base.loc, (base.scale_tril @ standard.unsqueeze(-1)).squeeze(-1))
    z: Tensor = base.icdf(u)
    return z


def _has_icdf(q: Distribution) -> bool:
    return type(q).icdf not in (Distribution.icdf, TransformedDistribution.icdf)


def _log_density(q: Distribution, y: Tensor) -> Tensor:
    if isinstance(q, Independent):
        return _summed(_log_density(q.base_dist, y), q)
    if _is_transformed(q):
        return _summed(_log_density(q.base_dist, y), q)
    if isinstance(q, Gamma):
        return q.concentration * (y + q.rate.log()) - q.rate * y.exp() - torch.lgamma(q.concentration)
    if isinstance(q, Dirichlet):
        alpha = q.concentration
        return (alpha * y).sum(-1) + torch.lgamma(alpha.sum(-1)) - torch.lgamma(alpha).sum(-1)
    if isinstance(q, Beta):
        a, b = q.concentration1, q.concentration0
        return a * logsigmoid(y) + b * logsigmoid(-y) + torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b)
    log_prob: Tensor = q.log_prob(y)
    return log_prob


def _is_transformed(q: Distribution) -> TypeGuard[TransformedDistribution]:
    return isinstance(q, TransformedDistribution) and not any(is_learned(t) for t in q.transforms)


def _summed(log_density: Tensor, q: Distribution) -> Tensor:
    inner = log_density.shape[len(q.batch_shape) :]
    return log_density.reshape(*q.batch_shape, inner.numel()).sum(-1)


def _log_gammas(q: Distribution, shape: Tensor) -> Tensor:
    lead = len(q.batch_shape)
    return log_gamma_sample(
        shape, uniform(shape.shape[:lead], shape.shape[lead:], dtype=shape.dtype, device=shape.device)
    )
