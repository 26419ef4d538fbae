"""Checks for distributions with which score-function or pathwise gradients would silently be wrong."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, MixtureSameFamily, TransformedDistribution

from lightning_estimators.distributions.composite import is_plainly_transformed
from lightning_estimators.distributions.parameters import base_distribution, distribution_parameters, rebuild

__all__ = ["check_fixed_support", "check_reparameterized"]


def check_fixed_support(q: Distribution, estimator: str) -> None:
    r"""Raise if the support of q depends on a learned parameter, where the score-function gradient is wrong.

    Then $\nabla_\theta \int q_\theta f$ has a term that comes from the moving end of the support, which
    $E[f \nabla \log q_\theta]$ lacks. For Uniform(0, h) and f(z) = z², for example, the gradient in h is 2h/3, and the
    score function gives −h/3. Bounds that require no gradient are allowed.

    Args:
        q: Any distribution.
        estimator: Name of the estimator, for the message.

    Raises:
        TypeError: The support depends on a learned parameter.
    """
    if _moving(base_distribution(q)):
        raise TypeError(
            f"{estimator} weights log q, whose gradient is not enough where the support of q moves with what is "
            f"learned, as that of this {type(base_distribution(q)).__name__} does. Use Pathwise, or detach the "
            "parameters that bound the support."
        )


def check_reparameterized(q: Distribution, estimator: str) -> None:
    """Raise unless q has an `rsample` whose derivative is that of the expectation.

    Args:
        q: Any distribution.
        estimator: Name of the estimator, for the message.

    Raises:
        TypeError: q has no `rsample`, or its samples are discrete, so that the gradient of `rsample` is a biased
            straight-through estimate.
    """
    family = type(base_distribution(q)).__name__
    if not q.has_rsample:
        raise TypeError(
            f"{estimator} needs a distribution with rsample, {family} has none. Use REINFORCE, which takes any "
            "distribution with a log_prob, StochasticBackprop where it has a rule, or RELAX for discrete variables."
        )
    if _is_discrete(base_distribution(q)):
        raise TypeError(
            f"{estimator} needs samples that are differentiable in the parameters, but those of {family} are discrete: "
            "its rsample is a straight-through estimate, which is biased. If that is what you want, "
            "StraightThrough, or Concrete(straight_through=True), says so; for an unbiased gradient use "
            "StochasticBackprop, RELAX or REINFORCE."
        )


def _is_discrete(q: Distribution) -> bool:
    if isinstance(q, TransformedDistribution):
        return _is_discrete(base_distribution(q.base_dist))
    try:
        return q.support is not None and bool(q.support.is_discrete)
    except NotImplementedError:  # a class that does not say
        return False


def _moving(q: Distribution) -> bool:
    if isinstance(q, MixtureSameFamily):
        return _moving(base_distribution(q.component_distribution))
    if is_plainly_transformed(q) and isinstance(q, TransformedDistribution):
        return _moving_transformed(q)
    return any(isinstance(end, Tensor) and end.requires_grad for end in _ends(q))


def _moving_transformed(q: TransformedDistribution) -> bool:
    """Whether an end of the support of an elementwise transformed distribution depends on learned parameters.

    The ends of the base's support are transformed, and the result is differentiated. It is not enough to look whether
    learned parameters enter: an end at infinity stays there, whatever they are.
    """
    if any(transform.domain.event_dim or transform.codomain.event_dim for transform in q.transforms):
        return False
    parameters = distribution_parameters(q)
    with torch.enable_grad():
        leaves = {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in parameters.items()}
        learned = [leaf for leaf in leaves.values() if leaf.requires_grad]
        on_leaves = rebuild(q, leaves)
        if not learned or not isinstance(on_leaves, TransformedDistribution):
            return False
        base, like = on_leaves.base_dist, next(iter(leaves.values()))
        for end in _ends(base_distribution(base)):
            x = torch.as_tensor(end, dtype=like.dtype, device=like.device).expand(base.batch_shape + base.event_shape)
            for transform in on_leaves.transforms:
                x = transform(x)
            x = x[x.isfinite()]
            if x.requires_grad:
                slopes = torch.autograd.grad(x.sum(), learned, materialize_grads=True, allow_unused=True)
                if any(slope.nan_to_num().any() for slope in slopes):
                    return True
    return False


def _ends(q: Distribution) -> list[Any]:
    """Return both ends of the support of scalars: as numbers, or as tensors if they depend on parameters."""
    try:
        support: Any = q.support
    except NotImplementedError:  # a class that does not say
        return []
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return [getattr(support, "lower_bound", -math.inf), getattr(support, "upper_bound", math.inf)]
