"""What estimators need to know of a `torch.distributions.Distribution`: parameters, rebuilding, sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

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
    constraints,
)

from lightning_estimators.noise import uniform
from lightning_estimators.private_api import has_probabilities, unvalidated_one_hot_categorical

__all__ = [
    "Delta",
    "base_distribution",
    "distribution_parameters",
    "log_gamma_sample",
    "probabilities",
    "rebuild",
    "sample",
    "standard_gamma",
]


def base_distribution(q: Distribution) -> Distribution:
    """Return what is inside any number of `Independent`."""
    while isinstance(q, Independent):
        q = q.base_dist
    return q


def distribution_parameters(q: Distribution) -> dict[str, Tensor]:
    """Return the parameters of q by name, attached to the graph.

    Distributions with `probs` and `logits` are described by their logits, whichever was given. The tensors are the
    same objects at every call, so a hook can ask for gradients with respect to them.

    Example:
        >>> import torch
        >>> q = Independent(Bernoulli(probs=torch.full((2, 3), 0.5)), 1)
        >>> {name: tuple(p.shape) for name, p in distribution_parameters(q).items()}
        {'logits': (2, 3)}
    """
    base = base_distribution(q)
    names = [name for name in base.arg_constraints if name != "probs" or "logits" not in base.arg_constraints]
    if isinstance(base, MultivariateNormal):
        names = ["loc", "scale_tril"]  # of the three ways to give a covariance
    return {name: getattr(base, name) for name in names}


def rebuild(q: Distribution, parameters: Mapping[str, Tensor]) -> Distribution:
    """Return a distribution like q on other parameters, which may have more batch axes on the left.

    Raises:
        TypeError: q cannot be built from its parameters alone.
    """
    if isinstance(q, Independent):
        inner = rebuild(q.base_dist, parameters)
        return Independent(inner, q.reinterpreted_batch_ndims, validate_args=False)
    if type(q) is OneHotCategorical:
        return unvalidated_one_hot_categorical(parameters["logits"])
    try:
        return type(q)(**dict(parameters), validate_args=False)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"expected a distribution that is built from its parameters {sorted(parameters)}, got {type(q).__name__} "
            f"({error}). Give the base distribution, wrapped in torch.distributions.Independent where needed."
        ) from error


def probabilities(q: Distribution) -> Tensor:
    """Return what `q.mean` is for Bernoulli and one-hot categorical variables, attached.

    The exponential of logits, which torch keeps normalised, is several times faster than its softmax of them.
    """
    base = base_distribution(q)
    if isinstance(base, OneHotCategorical) and not has_probabilities(base):
        return base.logits.exp()
    return base.mean


def sample(q: Distribution) -> Tensor:
    """Draw one sample, shape `batch_shape + event_shape`, without gradient.

    Bernoulli and one-hot categorical samples invert the distribution function, so that noise shared by
    `noise.CommonNoise` gives equal samples wherever parameters are equal. Beta and Dirichlet samples are right however
    small the concentrations.
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
            # The last category takes what rounding leaves, so the index cannot run out of range.
            index = (u >= probs.cumsum(-1)[..., :-1]).sum(-1, keepdim=True)
            return torch.zeros_like(probs).scatter_(-1, index, 1.0)
        if isinstance(base, Dirichlet):
            # Not torch's: where every gamma underflows (shapes near 0) it answers the centre, not a corner.
            return _log_gammas(q, base.concentration).softmax(-1).clamp_min(torch.finfo(base.concentration.dtype).tiny)
        if isinstance(base, Beta):
            difference = _log_gammas(q, base.concentration1) - _log_gammas(q, base.concentration0)
            limits = torch.finfo(difference.dtype)
            return difference.sigmoid().clamp(limits.tiny, 1 - limits.eps / 2)  # where log_prob is finite
        return q.sample()


def log_gamma_sample(shape: Tensor, u: Tensor) -> Tensor:
    """Draw log g, g ~ Γ(shape, 1), which stays finite where g underflows: Γ(a) = Γ(a + 1) U^(1/a).

    Args:
        shape: a.
        u: U(0, 1) noise.
    """
    return standard_gamma(shape + 1).log() + u.log() / shape


def standard_gamma(shape: Tensor) -> Tensor:
    """Draw g ~ Γ(shape, 1), without gradient; the smallest positive number of the dtype where g underflows."""
    return Gamma(shape, torch.ones_like(shape), validate_args=False).sample()


def _log_gammas(q: Distribution, shape: Tensor) -> Tensor:
    lead = len(q.batch_shape)
    return log_gamma_sample(
        shape, uniform(shape.shape[:lead], shape.shape[lead:], dtype=shape.dtype, device=shape.device)
    )


class Delta(Distribution):
    """All mass on one point: a deterministic layer among stochastic ones.

    Args:
        value: The point, shape batch_shape; wrap in `Independent` for an event.
        validate_args: As for any distribution of torch.

    Example:
        >>> import torch
        >>> Delta(torch.ones(2)).rsample((3,)).shape
        torch.Size([3, 2])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"value": constraints.real}
    support = constraints.real
    has_rsample = True

    def __init__(self, value: Tensor, validate_args: bool | None = None) -> None:  # noqa: FBT001
        self.value = value
        super().__init__(value.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The point."""
        return self.value

    @property
    def variance(self) -> Tensor:
        """Zero."""
        return torch.zeros_like(self.value)

    def expand(self, batch_shape: Sequence[int], _instance: Distribution | None = None) -> Delta:
        """Return the same distribution with more batch axes."""
        return Delta(self.value.expand(batch_shape), validate_args=False)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return the point, attached."""
        return self.value.expand(*sample_shape, *self.value.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return 0 at the point and minus infinity elsewhere: the density with respect to the point mass itself."""
        return torch.where(value == self.value, 0.0, -torch.inf).to(self.value.dtype)

    def entropy(self) -> Tensor:
        """Return 0."""
        return torch.zeros_like(self.value)
