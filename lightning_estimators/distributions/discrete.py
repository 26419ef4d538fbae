"""Bernoulli and categorical variables: probabilities, exact logits, and one-hot vectors in place of indices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, OneHotCategorical

from lightning_estimators.distributions.parameters import base_distribution
from lightning_estimators.private_api import categorical_of, is_given_by_probs, one_hot_of

__all__ = ["as_one_hot", "exact_logits", "of_index", "probabilities"]


def as_one_hot(q: Distribution) -> Distribution:
    """Return the `OneHotCategorical` with the same parameters (the same tensors) if q is `Categorical`, otherwise q.

    Example:
        >>> import torch
        >>> as_one_hot(Independent(Categorical(logits=torch.zeros(2, 3)), 1)).event_shape
        torch.Size([2, 3])
    """
    if isinstance(q, Independent):
        inner = as_one_hot(q.base_dist)
        return q if inner is q.base_dist else Independent(inner, q.reinterpreted_batch_ndims, validate_args=False)
    # A subclass with another log_prob may be no plain categorical distribution, so it is left alone.
    if isinstance(q, Categorical) and type(q).log_prob is Categorical.log_prob:
        return one_hot_of(q)
    return q


def of_index(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a cost of one-hot vectors, given a cost f of indices of classes."""
    return lambda z: f(z.argmax(-1))


def probabilities(q: Distribution) -> Tensor:
    """Return the probabilities of Bernoulli or one-hot categorical variables, attached to the graph.

    That is `q.mean`, but for logits, which torch has normalised already, exp is several times as fast as the softmax
    that `q.mean` computes.
    """
    base = base_distribution(q)
    if isinstance(base, OneHotCategorical) and "probs" not in vars(categorical_of(base)):
        return base.logits.exp()
    return base.mean


def exact_logits(q: Distribution) -> Tensor:
    """Return the logits of Bernoulli or one-hot categorical variables, attached; infinite for probabilities 0 and 1.

    `q.logits` of torch is bounded there, as if the impossible outcome had a small probability.
    """
    base = base_distribution(q)
    if not is_given_by_probs(base):
        return base.logits  # type: ignore[attr-defined, no-any-return]
    p = probabilities(base)
    inside = (p > 0) & (p < 1) if isinstance(base, Bernoulli) else p > 0
    # At the ends the gradient is to be 0, not NaN.
    p_inside = torch.where(inside, p, 0.5)
    logits = torch.logit(p_inside) if isinstance(base, Bernoulli) else p_inside.log()
    return torch.where(inside, logits, torch.where(p > 0, torch.inf, -torch.inf).to(p.dtype))
