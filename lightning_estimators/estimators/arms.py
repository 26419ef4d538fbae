"""ARMS: any number of Bernoulli samples, each as antithetic to the others as it can be."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution

from lightning_estimators.distributions import exact_logits
from lightning_estimators.estimators.base import GradientEstimator
from lightning_estimators.estimators.dirichlet_copula import uniform_roots
from lightning_estimators.estimators.estimate import Estimate
from lightning_estimators.estimators.relaxation import gradients_of_parameters
from lightning_estimators.objectives import Objective

__all__ = ["ARMS"]


class ARMS(GradientEstimator):
    r"""Estimates the gradient in the logits from K samples that are negatively correlated; unbiased.

    $\hat g = \frac{1}{K - 1} \sum_k [f(b_k) - \bar f]\, (b_k - p)\, \frac{p (1 - p)}{p - P(b_i = b_j = 1)}$:
    leave-one-out REINFORCE, with a weight that makes up for the correlation. The noise of the samples is uniform on the
    simplex in every coordinate, so that $P(b_i = b_j = 1) = \max(2 p^{1/(K-1)} - 1, 0)^{K-1}$ for p below ½. With two
    samples it is `DisARM`.

    Requirements: Bernoulli variables; nothing of f. Cost: one evaluation of f per sample.

    Args:
        num_samples: K, samples per batch element, at least 2.

    Source: Dimitriev & Zhou (2021), *ARMS: antithetic-REINFORCE-multi-sample gradient for binary variables*,
    https://arxiv.org/abs/2105.14141. The weight is worked out from the probability m of the less probable outcome, as
    $(1 - m) / (1 - \max(2 - m^{-1/(K-1)}, 0)^{K-1})$: it lies between ½ and 2, where the formula above is 0 / 0 for
    probabilities that round to 0 or 1.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Independent
        >>> _ = torch.manual_seed(0)
        >>> logits = torch.zeros(10000, 2, requires_grad=True)
        >>> loss = ARMS()(Independent(Bernoulli(logits=logits), 1), lambda b: b.sum(-1).square())
        >>> loss.sum().backward()
        >>> logits.grad.mean(0).round(decimals=1)  # the exact gradient is 1/2 in both
        tensor([0.5000, 0.5000])
    """

    families: ClassVar[tuple[type[Distribution], ...]] = (Bernoulli,)
    min_samples: ClassVar[int] = 2
    needs_independent_samples: ClassVar[bool] = True

    def __init__(self, num_samples: int = 4) -> None:
        super().__init__(num_samples)

    def is_unbiased(self, q: Distribution) -> bool:
        """It always is."""
        return True

    def evaluations(self, q: Distribution) -> tuple[int, int]:
        """Return one evaluation of f per sample."""
        return self.num_samples, 0

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Draw the samples, and weight each by how far its cost is from the average."""
        logits, power = exact_logits(q).detach(), self.num_samples - 1
        v = uniform_roots(q.batch_shape, q.event_shape, dtype=logits.dtype, device=logits.device)
        rarer = torch.sigmoid(-logits[0].abs())  # the probability of the less probable outcome
        root = rarer.pow(1 / power)
        likelier_is_1 = logits > 0
        b = (v < root).logical_xor(likelier_is_1).to(logits.dtype)
        value = f(b)
        costs = value.detach()
        signal = ((costs - costs.mean(0)) / power).reshape(costs.shape + (1,) * len(q.event_shape))
        weight = (1 - rarer) / (1 - (2 - 1 / root).clamp_min(0).pow(power))
        # The signals add up to 0, so any constant may stand for p: with this one, samples that agree weigh exactly 0.
        gradient = (signal * (b - likelier_is_1.to(b.dtype))).sum(0) * weight
        return Estimate(value, gradients_of_parameters(q, leaves, gradient))
