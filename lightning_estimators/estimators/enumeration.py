"""The exact expectation over a finite support."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, OneHotCategorical

from lightning_estimators.distributions import as_one_hot, base_distribution, probabilities
from lightning_estimators.estimators.base import GradientEstimator
from lightning_estimators.estimators.elsewhere import evaluated_elsewhere
from lightning_estimators.estimators.estimate import Estimate
from lightning_estimators.objectives import Objective
from lightning_estimators.private_api import is_given_by_probs

__all__ = ["Enumeration"]


class Enumeration(GradientEstimator):
    r"""Computes $\sum_z q_\theta(z) f(z)$ and its gradient exactly: the oracle of tests, an estimator for small models.

    Requirements: a support of at most `limit` points. Cost: one evaluation of f per point of the support, at once.

    Args:
        limit: The most points that are enumerated: 2^D for D Bernoullis, K^D for D categoricals.

    Raises:
        ValueError: The support is larger than `limit`.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Independent
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> Enumeration()(Independent(Bernoulli(logits=logits), 1), lambda b: b.prod(-1)).backward()
        >>> logits.grad
        tensor([0.1250, 0.1250])
    """

    families: ClassVar[tuple[type[Distribution], ...]] = (Bernoulli, OneHotCategorical)

    def __init__(self, limit: int = 16384) -> None:
        super().__init__(num_samples=1)
        if limit < 1:
            raise ValueError(f"Enumeration needs a limit of at least 1 point, got {limit!r}.")
        self.limit = limit

    def check(self, q: Distribution) -> None:
        """Refuse other families and supports that are too large."""
        super().check(q)
        categories, variables = _support(q)
        if variables * math.log(categories) > math.log(self.limit) + 1e-9:  # the power itself may have a million digits
            size = f" = {categories**variables}" if variables * math.log10(categories) < 100 else ""
            raise ValueError(
                f"the support has {categories}^{variables}{size} points, more than the limit of {self.limit}. "
                "Use an estimator that samples (StochasticBackprop varies least), or raise `limit`."
            )

    def evaluations(self, q: Distribution) -> tuple[int, int]:
        """Return one evaluation of f per point of the support."""
        categories, variables = _support(q)
        return categories**variables, 0

    def is_unbiased(self, q: Distribution) -> bool:
        """It is exact."""
        return True

    def is_pathwise(self, q: Distribution) -> bool:
        """The value carries the gradient."""
        return True

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Evaluate f on the whole support along a new leading axis and weight by the probabilities."""
        (parameter,) = leaves.values()
        categories, variables = _support(q)
        index = torch.arange(categories, device=parameter.device)
        points = torch.cartesian_prod(*[index] * variables) if variables else index.new_zeros(1, 0)
        points = points.reshape(categories**variables, variables)
        if isinstance(base_distribution(q), OneHotCategorical):
            points = torch.nn.functional.one_hot(points, categories)
        lead = (1,) * len(q.batch_shape)
        support = points.to(parameter.dtype).reshape(len(points), *lead, *q.event_shape)
        weights = _weights(q, support, variables)
        support = support.expand(-1, *q.batch_shape, *q.event_shape)
        impossible = weights.detach() == 0
        if "logits" in leaves:
            # What cannot happen is not evaluated: a possible point, of weight 0, stands in for it.
            event = (1,) * len(q.event_shape)
            likeliest = weights.detach().argmax(0, keepdim=True)
            stand_in = support.gather(0, likeliest.reshape(*likeliest.shape, *event).expand(1, *support.shape[1:]))
            support = torch.where(impossible.reshape(*impossible.shape, *event), stand_in, support)
        with evaluated_elsewhere(q, f):
            value = f(support)
        # Given as probabilities, the expectation changes with one that is 0, by the cost; but 0 times infinity is 0.
        value = torch.where(impossible & ~value.detach().isfinite(), 0.0, value)
        return Estimate((weights * value).sum(0))

    def extra_repr(self) -> str:
        """Show the limit."""
        return f"limit={self.limit}"


def _weights(q: Distribution, support: Tensor, variables: int) -> Tensor:
    """Return the probability of each point, attached; a product, whose derivative is right where factors are 0."""
    base = base_distribution(q)
    if isinstance(base, Bernoulli):
        if is_given_by_probs(base):
            yes, no = base.probs, 1 - base.probs
        else:
            yes, no = base.logits.sigmoid(), (-base.logits).sigmoid()
        factors = torch.where(support > 0, yes, no)
    else:
        factors = (probabilities(q) * support).sum(-1)
    return factors.reshape(*factors.shape[: 1 + len(q.batch_shape)], variables).prod(-1)


def _support(q: Distribution) -> tuple[int, int]:
    """Number of categories and of variables of the event."""
    q = as_one_hot(q)
    if isinstance(base_distribution(q), Bernoulli):
        return 2, math.prod(q.event_shape)
    return q.event_shape[-1], math.prod(q.event_shape[:-1])
