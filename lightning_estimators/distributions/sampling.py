"""Drawing samples: accurate where torch's are not (tiny concentrations), and from shared noise where possible."""

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

    Bernoulli and one-hot categorical samples are made from uniform noise by inverting the distribution function. So
    with the noise of `noise.CommonNoise`, samples are equal where parameters are equal. Outcomes of probability 0 are
    never drawn. Gamma, beta and Dirichlet samples are accurate for concentrations of any size.

    Raises:
        TypeError: The samples are to be coupled, but q cannot be sampled from uniform noise (`can_be_coupled`).
    """
    base = base_distribution(q)
    with torch.no_grad():
        if isinstance(base, Bernoulli):
            probs = base.probs
            u = uniform(q.batch_shape, q.event_shape, dtype=probs.dtype, device=probs.device)
            return torch.lt(u, probs, out=torch.empty_like(probs))  # several times as fast as (u < probs).to(dtype)
        if isinstance(base, OneHotCategorical):
            probs = probabilities(base)
            u = uniform(q.batch_shape, (*q.event_shape[:-1], 1), dtype=probs.dtype, device=probs.device)
            # Rounding may leave the sum of the probabilities off 1. The noise is scaled to stay below this sum, so the
            # index is never out of range, and never that of a class of probability 0.
            sums = probs.cumsum(-1)
            index = (u * sums[..., -1:] >= sums).sum(-1, keepdim=True)
            return torch.zeros_like(probs).scatter_(-1, index, 1.0)
        if is_coupled():
            return _by_inverse_cdf(q)
        if isinstance(base, Gamma | Beta | Dirichlet):
            return draw(q)[0]
        return q.sample()


def reparameterized_sample(q: Distribution) -> Tensor:
    """Draw one sample that is attached to the parameters of q, which must have `rsample`.

    Raises:
        TypeError: As for `sample`.
    """
    return _by_inverse_cdf(q) if is_coupled() else q.rsample()


def can_be_coupled(q: Distribution) -> bool:
    """Whether samples of q can be made from uniform numbers, one for each entry, and so be antithetic or stratified.

    They can if torch has the inverse distribution function (`icdf`) of q, or of the distribution that q transforms.
    They can also for Bernoulli, one-hot categorical and multivariate normal variables, and for point masses.
    """
    base = base_distribution(q)
    if isinstance(base, Bernoulli | OneHotCategorical | MultivariateNormal | Delta) or _has_icdf(base):
        return True
    return isinstance(base, TransformedDistribution) and can_be_coupled(base.base_dist)


def check_can_be_coupled(q: Distribution) -> None:
    """Raise unless samples of q can be coupled (`can_be_coupled`).

    Raises:
        TypeError: They cannot be coupled.
    """
    if not can_be_coupled(q):
        raise TypeError(
            f"samples of {type(base_distribution(q)).__name__} cannot be coupled: torch has no inverse of its "
            'distribution function (icdf), to make them from uniform noise. Use coupling="independent".'
        )


def draw(q: Distribution, *, attached: bool = False) -> tuple[Tensor, Tensor]:
    """Draw one sample, and return it and its log density, which is attached to the parameters.

    The log density is meant for its gradient, the score, so terms that do not depend on the parameters may be left out.
    For gamma, beta and Dirichlet variables it is the density of their logarithm, which does not underflow where the
    variable itself does. For transformed distributions it is the density of the untransformed sample, which need not be
    recovered from the transformed one.

    Args:
        q: Any distribution with `log_prob`.
        attached: Whether the sample is attached to the parameters of q, which must have `rsample` then.

    Returns:
        The sample, shape `batch_shape + event_shape`, and the log density, shape `batch_shape`.
    """
    with torch.set_grad_enabled(attached and torch.is_grad_enabled()):
        z, y = _draw(q, attached)
    return z, _log_density(q, y.detach())


def log_gamma_sample(shape: Tensor, u: Tensor) -> Tensor:
    """Draw the logarithm of a gamma variable g ~ Γ(a, 1), which is finite also where g underflows.

    If h ~ Γ(a + 1, 1) and u is uniform on (0, 1), then h u^(1/a) has the distribution of g.

    Args:
        shape: a; the sample is attached to it.
        u: Numbers from U(0, 1).
    """
    return standard_gamma(shape + 1).log() + u.log() / shape


def standard_gamma(shape: Tensor) -> Tensor:
    """Draw g ~ Γ(shape, 1), attached to the shape; the smallest positive number of the dtype where g underflows."""
    if is_coupled():
        raise TypeError("samples that are made from gamma variables cannot be coupled.")
    return Gamma(shape, torch.ones_like(shape), validate_args=False).rsample()


def has_small_concentration(q: Distribution) -> bool:
    """Whether q is a gamma, beta or Dirichlet distribution of which torch's samples may underflow.

    A gamma variable of shape a is below the smallest positive number ν with a probability of about ν^a. Concentrations
    for which this is more than about 3e-8 count as small.
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
    """Draw a sample, and the value from which `_log_density` computes its density."""
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
        # Not by torch: where all gamma variables underflow, it returns the centre of the simplex and not a corner.
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
    """Compute an attached sample from uniform noise; its first `batch_axes` axes are batch axes of the noise."""
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
