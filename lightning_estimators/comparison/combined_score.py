"""The score function of objectives that combine the costs of several samples: a reference for what has baselines."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution

from lightning_estimators.distributions import check_fixed_support, draw
from lightning_estimators.estimators import Estimate, GradientEstimator
from lightning_estimators.estimators.checks import combined_costs
from lightning_estimators.objectives import Objective

__all__ = ["CombinedScore"]


class CombinedScore(GradientEstimator):
    r"""Estimates the gradient of the objective of another estimator, $E[L(f(z_1), \dots, f(z_K))]$, as it is defined.

    $\hat g = [L - c] \sum_k \nabla \log q(z_k)$, where c is L of K more samples, which have nothing to do with these.

    Requirements: a q with `log_prob` and a fixed support. Cost: two evaluations of f per sample.

    Args:
        objective: Whose `combine` is L, and whose `num_samples` is K.
    """

    families: ClassVar[tuple[type[Distribution], ...]] = (Distribution,)
    needs_independent_samples: ClassVar[bool] = True

    def __init__(self, objective: GradientEstimator) -> None:
        super().__init__(objective.num_samples)
        self._objective = [objective]  # not a part of this

    def combine(self, costs: Tensor) -> Tensor:
        """Return the objective of the other."""
        return self._objective[0].combine(costs)

    def check(self, q: Distribution) -> None:
        """Refuse supports that move with what is learned."""
        super().check(q)
        check_fixed_support(q, "CombinedScore")

    def is_unbiased(self, q: Distribution) -> bool:
        """It is."""
        return True

    def evaluations(self, q: Distribution) -> tuple[int, int]:
        """Return two evaluations of f per sample."""
        return 2 * self.num_samples, 0

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Multiply the whole objective by the score of all samples."""
        with combined_costs(type(self).__name__):
            z, log_density = draw(q)
            value = f(z)
            with torch.no_grad():
                signal = self.combine(value) - self.combine(f(draw(q)[0]))
        found = torch.autograd.grad(
            (signal * log_density).sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        return Estimate(value, {name: g.sum(0) for name, g in zip(leaves, found, strict=True)})
