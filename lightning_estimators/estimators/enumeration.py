"""The exact expectation over a finite support."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, OneHotCategorical

from lightning_estimators.distributions import base_distribution
from lightning_estimators.estimators.base import GradientEstimator
from lightning_estimators.estimators.estimate import Estimate
from lightning_estimators.objectives import Objective

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
        if categories**variables > self.limit:
            raise ValueError(
                f"the support has {categories}^{variables} = {categories**variables} points, more than the limit of "
                f"{self.limit}. Use an estimator that samples (StochasticBackprop varies least), or raise `limit`."
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
        logits = leaves["logits"]
        categories, variables = _support(q)
        index = torch.cartesian_prod(*[torch.arange(categories, device=logits.device)] * variables)
        points = index.reshape(-1, variables)
        if isinstance(base_distribution(q), OneHotCategorical):
            points = torch.nn.functional.one_hot(points, categories)
        lead = (1,) * len(q.batch_shape)
        support = points.to(logits.dtype).reshape(-1, *lead, *q.event_shape)
        weights = q.log_prob(support).exp()
        return Estimate((weights * f(support.expand(-1, *q.batch_shape, *q.event_shape))).sum(0))

    def extra_repr(self) -> str:
        """Show the limit."""
        return f"limit={self.limit}"


def _support(q: Distribution) -> tuple[int, int]:
    """Number of categories and of variables of the event."""
    if isinstance(base_distribution(q), Bernoulli):
        return 2, math.prod(q.event_shape)
    return q.event_shape[-1], math.prod(q.event_shape[:-1])
