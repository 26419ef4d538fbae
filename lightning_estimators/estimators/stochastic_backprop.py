"""Generalized stochastic backpropagation: derivatives moved from the parameters to the random variable."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor
from torch.distributions import Bernoulli, Distribution, OneHotCategorical

from lightning_estimators.distributions import base_distribution, sample
from lightning_estimators.estimators.base import Estimate, GradientEstimator
from lightning_estimators.objectives import Objective
from lightning_estimators.rules import rule_for

__all__ = ["StochasticBackprop"]


class StochasticBackprop(GradientEstimator):
    r"""Estimates the gradient by the exact rule of the family, in every coordinate, at a sample of the others.

    Bernoulli: $p_j' [f(1, z_{-j}) - f(0, z_{-j})]$. Categorical: the sum over K - 1 alternatives against a reference.

    Unbiased. Requirements: nothing of f. Cost: one evaluation of f with gradient, and its changes in every coordinate
    through `coordinate_change`: D (or D (K - 1)) evaluations for a plain callable, in chunks, without gradient; one
    rank-one update each for an objective that knows its structure (`lightning_estimators.objectives`).

    Args:
        num_samples: S, samples per batch element; the paper finds one enough.

    Raises:
        TypeError: The family of q has no rule.

    Source: Echraibi et al. (2020), *Generalized stochastic backpropagation*, theorem 2; the discrete rule is the local
    expectation gradient of Titsias & Lázaro-Gredilla (2015).

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Independent
        >>> logits = torch.zeros(2, 3, requires_grad=True)
        >>> loss = StochasticBackprop()(Independent(Bernoulli(logits=logits), 1), lambda b: b.sum(-1))
        >>> loss.sum().backward()
        >>> logits.grad[0]  # exact: f is a sum over coordinates
        tensor([0.2500, 0.2500, 0.2500])
    """

    unbiased: ClassVar[bool] = True
    families: ClassVar[tuple[type[Distribution], ...]] = (Bernoulli, OneHotCategorical)
    needs_gradient: ClassVar[bool] = False
    evaluations: ClassVar[tuple[int, int]] = (1, 0)

    def check(self, q: Distribution) -> None:
        """Refuse families without a rule."""
        rule_for(q)

    def cost(self, q: Distribution) -> tuple[int, int]:
        """Evaluations if f is a plain callable: one, once more as reference of the changes, and one per change."""
        size = math.prod(q.event_shape)
        categorical = isinstance(base_distribution(q), OneHotCategorical)
        changes = size - size // q.event_shape[-1] if categorical else size
        return self.num_samples * (changes + 2), 0

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Sample, and apply the rule at the sample."""
        z = sample(q)
        return Estimate(f(z), rule_for(q)(q, z, f))
