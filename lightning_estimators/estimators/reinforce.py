"""REINFORCE: the score function, with a baseline plugged in."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, OneHotCategorical

from lightning_estimators.baselines import Baseline, MovingAverage
from lightning_estimators.distributions import base_distribution, check_fixed_support, draw, sample
from lightning_estimators.estimators.base import GradientEstimator
from lightning_estimators.estimators.checks import check_coupling
from lightning_estimators.estimators.estimate import Estimate
from lightning_estimators.estimators.relaxation import gradients_of_parameters, score
from lightning_estimators.noise import Coupling
from lightning_estimators.objectives import Objective
from lightning_estimators.objectives.observed import observed_actions

__all__ = ["REINFORCE"]


class REINFORCE(GradientEstimator):
    r"""Estimates the gradient by the score function: $(f(z) - c)\, \nabla_\theta \log q_\theta(z)$.

    Requirements: a q with `log_prob`, whose support does not depend on what is learned (as that of Uniform or Pareto
    does); nothing of f. Cost: one evaluation of f per sample.
    Unbiased with every baseline but a normalized `LearnedBaseline`, whose gradient is a positive multiple of it.

    Args:
        baseline: What is subtracted from the cost; by default the moving average of past costs.
        num_samples: Samples per batch element.
        coupling: How these depend on one another; see `GradientEstimator`.

    Raises:
        TypeError: The support of q moves with what is learned.
        ValueError: The baseline needs more samples (`LeaveOneOut`: 2), independent ones, or a context that is not
            given.

    Source: Williams (1992), *Simple statistical gradient-following algorithms for connectionist reinforcement
    learning*, https://doi.org/10.1007/BF00992696.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Independent
        >>> _ = torch.manual_seed(0)
        >>> logits = torch.zeros(1, 3, requires_grad=True)
        >>> q = Independent(Bernoulli(logits=logits), 1)
        >>> loss = REINFORCE(num_samples=100)(q, lambda b: (b - 0.3).square().sum(-1))
        >>> loss.mean().backward()
        >>> logits.grad.shape
        torch.Size([1, 3])
    """

    families: ClassVar[tuple[type[Distribution], ...]] = (Distribution,)
    takes_observed_costs: ClassVar[bool] = True

    def __init__(
        self, baseline: Baseline | None = None, num_samples: int = 1, coupling: Coupling = "independent"
    ) -> None:
        super().__init__(num_samples, coupling)
        self.baseline = MovingAverage() if baseline is None else baseline
        self.num_samples = num_samples  # again: the baseline may need more, or independent ones

    def _check_num_samples(self, value: int) -> None:
        super()._check_num_samples(value)
        baseline = getattr(self, "baseline", None)  # not yet there when the base is built
        if baseline is not None and value < baseline.min_samples:
            raise ValueError(
                f"{type(baseline).__name__} needs num_samples of at least {baseline.min_samples}, got {value}."
            )

    def _check_coupling(self, value: Coupling, num_samples: int) -> None:
        super()._check_coupling(value, num_samples)
        if hasattr(self, "baseline"):
            check_coupling(self.baseline, value, num_samples)

    def is_unbiased(self, q: Distribution) -> bool:
        """Whether the baseline leaves the mean of the gradient as it is."""
        return self.baseline.is_unbiased()

    def check(self, q: Distribution) -> None:
        """Refuse supports that move with what is learned."""
        super().check(q)
        check_fixed_support(q, "REINFORCE")

    def prepare(self, q: Distribution, context: Tensor | None = None) -> None:
        """Check q; let the baseline refuse a missing context and size itself."""
        super().prepare(q, context)
        self.baseline.prepare(context)

    def evaluations(self, q: Distribution) -> tuple[int, int]:
        """Return one evaluation of f per sample."""
        return self.num_samples, 0

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Weight the score by the learning signal."""
        discrete = isinstance(base_distribution(q), Bernoulli | OneHotCategorical)
        z, log_density = observed_actions(f), None
        if z is None:
            z, log_density = (sample(q), None) if discrete else draw(q)
        elif not discrete:
            log_density = q.log_prob(z)
        value = f(z)
        signal, loss = self.baseline(value.detach(), context)
        if log_density is None:
            gradient = signal.reshape(signal.shape + (1,) * len(q.event_shape)) * score(q, z)
            return Estimate(value, gradients_of_parameters(q, leaves, gradient), loss)
        # The score of one sample depends on that sample's parameters only, so weighting the log-probabilities
        # by the signal weights every score by its own.
        gradients = torch.autograd.grad(
            (signal * log_density).sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        return Estimate(value, dict(zip(leaves, gradients, strict=True)), loss)

    def diagnostics(self) -> dict[str, Any]:
        """Return those of the base and of the baseline."""
        return {**super().diagnostics(), **self.baseline.diagnostics()}
