"""DisARM, found at the same time as U2G: two Bernoulli samples from one noise, u and 1 - u."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution

from lightning_estimators.distributions import exact_logits
from lightning_estimators.estimators.base import GradientEstimator
from lightning_estimators.estimators.estimate import Estimate
from lightning_estimators.estimators.relaxation import gradients_of_parameters
from lightning_estimators.noise import uniform
from lightning_estimators.objectives import Objective

__all__ = ["DisARM"]


class DisARM(GradientEstimator):
    r"""Estimates the gradient in the logits l from antithetic pairs of samples, b and b̃; unbiased.

    $\hat g = \frac12 [f(b) - f(\tilde b)]\, (b - \tilde b)\, \sigma(|l|)$, with b drawn from one uniform noise u per
    coordinate, and $\tilde b$ from 1 − u. It is the mean of the ARM estimator, $[f(b) - f(\tilde b)] (u - \frac12)$
    with $b = 1[u > \sigma(-l)]$ and $\tilde b = 1[u < \sigma(l)]$, over all noise that gives the same pair.

    Requirements: Bernoulli variables; nothing of f. Cost: one evaluation of f per sample, so two for a pair.

    The samples of a pair differ in few coordinates where most probabilities are near 0 or 1, but those differ by much:
    `UGC` limits the variance there. `ARMS` makes more than two samples differ from one another.

    Args:
        num_samples: Samples per batch element, an even number; the estimate is the average over independent pairs.

    Raises:
        ValueError: The number of samples is odd.

    Source: Dong, Mnih & Tucker (2020), *DisARM: an antithetic gradient estimator for binary latent variables*,
    https://arxiv.org/abs/2006.10680; Yin, Ho, Yan, Qian & Zhou (2020), *Probabilistic best subset selection via
    gradient-based optimization*, https://arxiv.org/abs/2006.06448 (U2G).

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Independent
        >>> _ = torch.manual_seed(0)
        >>> logits = torch.zeros(10000, 2, requires_grad=True)
        >>> loss = DisARM()(Independent(Bernoulli(logits=logits), 1), lambda b: b.sum(-1).square())
        >>> loss.sum().backward()
        >>> logits.grad.mean(0).round(decimals=1)  # the exact gradient is 1/2 in both
        tensor([0.5000, 0.5000])
    """

    families: ClassVar[tuple[type[Distribution], ...]] = (Bernoulli,)
    min_samples: ClassVar[int] = 2
    needs_independent_samples: ClassVar[bool] = True

    def __init__(self, num_samples: int = 2) -> None:
        super().__init__(num_samples)

    def _check_num_samples(self, value: int) -> None:
        super()._check_num_samples(value)
        if value % 2:
            raise ValueError(f"DisARM draws samples in pairs and needs an even num_samples, got {value}.")

    def is_unbiased(self, q: Distribution) -> bool:
        """It always is."""
        return True

    def evaluations(self, q: Distribution) -> tuple[int, int]:
        """Return one evaluation of f per sample."""
        return self.num_samples, 0

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Draw all pairs at once, and weight where they differ by how much f does."""
        pairs = self.num_samples // 2
        logits = exact_logits(q).detach()[:pairs]
        u = uniform(logits.shape[: len(q.batch_shape)], q.event_shape, dtype=logits.dtype, device=logits.device)
        # Which samples have the less probable outcome: its probability keeps its digits however small it is.
        rarer, likelier_is_1 = torch.sigmoid(-logits.abs()), logits > 0
        b = torch.stack([1 - u < rarer, u < rarer]).logical_xor(likelier_is_1).to(logits.dtype)
        value = f(b.flatten(0, 1))
        costs = value.detach().reshape(2, *logits.shape[: len(q.batch_shape)])
        difference = (costs[0] - costs[1]).reshape(costs.shape[1:] + (1,) * len(q.event_shape))
        gradient = 0.5 * difference * (b[0] - b[1]) * (1 - rarer)
        return Estimate(value, gradients_of_parameters(q, leaves, gradient.mean(0)))
