"""Bernoulli and categorical variables: probabilities, exact logits, and an index as its one-hot twin."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, OneHotCategorical

from lightning_estimators.distributions.parameters import base_distribution
from lightning_estimators.private_api import categorical_of, is_given_by_probs, one_hot_of

__all__ = ["as_one_hot", "exact_logits", "of_index", "probabilities"]


def as_one_hot(q: Distribution) -> Distribution:
    """Return q, or the one-hot variable that is the same as an index: of the same probabilities, the same tensors.

    Example:
        >>> import torch
        >>> as_one_hot(Independent(Categorical(logits=torch.zeros(2, 3)), 1)).event_shape
        torch.Size([2, 3])
    """
    if isinstance(q, Independent):
        inner = as_one_hot(q.base_dist)
        return q if inner is q.base_dist else Independent(inner, q.reinterpreted_batch_ndims, validate_args=False)
    # A class of one's own that draws or weighs in another way is no index of independent classes.
    if isinstance(q, Categorical) and type(q).log_prob is Categorical.log_prob:
        return one_hot_of(q)
    return q


def of_index(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the cost of a one-hot variable that f, the cost of an index, stands for."""
    return lambda z: f(z.argmax(-1))


def probabilities(q: Distribution) -> Tensor:
    """Return what `q.mean` is for Bernoulli and one-hot categorical variables, attached.

    The exponential of logits, which torch keeps normalised, is several times faster than its softmax of them.
    """
    base = base_distribution(q)
    if isinstance(base, OneHotCategorical) and "probs" not in vars(categorical_of(base)):
        return base.logits.exp()
    return base.mean


def exact_logits(q: Distribution) -> Tensor:
    """Return the logits of Bernoulli and one-hot categorical variables, attached; infinite where something is certain.

    Torch works out bounded logits of probabilities that are 0 or 1, as if another outcome were possible.
    """
    base = base_distribution(q)
    if not is_given_by_probs(base):
        return base.logits  # type: ignore[attr-defined, no-any-return]
    p = probabilities(base)
    inside = (p > 0) & (p < 1) if isinstance(base, Bernoulli) else p > 0
    # No gradient at the ends, rather than one that is not a number.
    p_inside = torch.where(inside, p, 0.5)
    logits = torch.logit(p_inside) if isinstance(base, Bernoulli) else p_inside.log()
    return torch.where(inside, logits, torch.where(p > 0, torch.inf, -torch.inf).to(p.dtype))
