"""VIMCO: the importance-weighted bound of several samples, each with a baseline from the others."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, OneHotCategorical

from lightning_estimators.distributions import base_distribution, check_fixed_support, draw, sample
from lightning_estimators.estimators.base import GradientEstimator
from lightning_estimators.estimators.checks import combined_costs
from lightning_estimators.estimators.estimate import Estimate
from lightning_estimators.estimators.relaxation import gradients_of_parameters, score
from lightning_estimators.objectives import Objective

__all__ = ["VIMCO"]


class VIMCO(GradientEstimator):
    r"""Estimates the gradient of $-E \log \frac1K \sum_k e^{-f(z_k)}$, the importance-weighted bound; unbiased for it.

    With $f = \log q(z) - \log p(x, z)$ the objective is the negative bound on log p(x) of importance-weighted
    autoencoders, which is tighter than the negative ELBO, the mean of the costs, that other estimators minimise. So f
    must hold all of log q: one in which a KL divergence is worked out in closed form bounds nothing here.

    $\hat g = \sum_k [\hat L - \hat L_{-k}] \nabla \log q(z_k)$ with $\hat L = -\log \frac1K \sum_k e^{-f_k}$, and
    $\hat L_{-k}$ the same with the mean of the other costs in place of $f_k$. The value, $\hat L$, carries the
    gradient in everything f depends on directly, $\sum_k w_k \nabla f(z_k)$ with normalised weights
    $w_k \propto e^{-f_k}$.

    Requirements: a q with `log_prob`, whose support does not depend on what is learned; nothing of f, but that random
    parts of it are exact or pathwise estimators: the average of another's estimates is not what is combined here.
    Cost: one evaluation of f per sample.

    Args:
        num_samples: K, samples per batch element, at least 2.

    Raises:
        TypeError: The support of q moves with what is learned.
        ValueError: There is one sample; f contains an estimator of another kind.

    Source: Mnih & Rezende (2016), *Variational inference for Monte Carlo objectives*, eqs. 5, 9 and 10,
    https://arxiv.org/abs/1602.06725; the bound: Burda, Grosse & Salakhutdinov (2016), *Importance weighted
    autoencoders*, https://arxiv.org/abs/1509.00519.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Independent
        >>> _ = torch.manual_seed(0)
        >>> logits = torch.zeros(10000, 2, requires_grad=True)
        >>> loss = VIMCO(num_samples=2)(Independent(Bernoulli(logits=logits), 1), lambda b: b.sum(-1))
        >>> loss.sum().backward()
        >>> bool((logits.grad.mean(0) > 0).all()), bool(loss.mean() < 1)  # the mean of the costs is 1
        (True, True)
    """

    families: ClassVar[tuple[type[Distribution], ...]] = (Distribution,)
    min_samples: ClassVar[int] = 2
    needs_independent_samples: ClassVar[bool] = True

    def __init__(self, num_samples: int = 5) -> None:
        super().__init__(num_samples)

    def check(self, q: Distribution) -> None:
        """Refuse supports that move with what is learned."""
        super().check(q)
        check_fixed_support(q, "VIMCO")

    def is_unbiased(self, q: Distribution) -> bool:
        """It always is, for the bound."""
        return True

    def evaluations(self, q: Distribution) -> tuple[int, int]:
        """Return one evaluation of f per sample."""
        return self.num_samples, 0

    def combine(self, costs: Tensor) -> Tensor:
        """Return minus the logarithm of the mean weight."""
        return math.log(len(costs)) - (-costs).logsumexp(0)

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Weight the score of every sample by what its own cost changes in the bound."""
        discrete = isinstance(base_distribution(q), Bernoulli | OneHotCategorical)
        z, log_density = (sample(q), None) if discrete else draw(q)
        with combined_costs(type(self).__name__):
            value = f(z)
        signal = self._signal(value.detach())
        if log_density is None:
            gradient = signal.reshape(signal.shape + (1,) * len(q.event_shape)) * score(q, z)
            gradients = gradients_of_parameters(q, leaves, gradient)
        else:
            found = torch.autograd.grad(
                (signal * log_density).sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
            )
            gradients = dict(zip(leaves, found, strict=True))
        return Estimate(value, {name: gradient.sum(0) for name, gradient in gradients.items()})

    def _signal(self, costs: Tensor) -> Tensor:
        """Return the objective less what it is with the mean of the others in place of each cost."""
        itself = torch.eye(len(costs), dtype=torch.bool, device=costs.device)
        itself = itself.reshape(*itself.shape, *(1,) * (costs.ndim - 1))
        # A sample that is impossible, of infinite cost, is left out of the mean: what is subtracted stays finite.
        others = costs.isfinite().unsqueeze(0) & ~itself
        mean = torch.where(others, costs.unsqueeze(0), 0.0).sum(1) / others.sum(1).clamp_min(1)
        replaced = torch.where(itself, mean.unsqueeze(1), costs.unsqueeze(0))  # row k: without the cost of sample k
        return self.combine(costs) - self.combine(replaced.transpose(0, 1))
