"""The hard concrete relaxation: gates that are exactly 0 or 1 with some probability, for L0 regularization."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution

from lightning_estimators.distributions import exact_logits
from lightning_estimators.estimators.base import GradientEstimator
from lightning_estimators.estimators.cost_gradient import check_differentiable
from lightning_estimators.estimators.estimate import Estimate
from lightning_estimators.estimators.relaxation import relaxation_of
from lightning_estimators.estimators.temperature import HasTemperature
from lightning_estimators.noise import Coupling
from lightning_estimators.objectives import Objective
from lightning_estimators.schedules import Schedule

__all__ = ["HardConcrete"]


class HardConcrete(HasTemperature, GradientEstimator):
    r"""Differentiates f at gates that were relaxed, stretched and clipped: biased as a gradient of Bernoulli gates.

    $\nabla_\theta f(z)$ with $z = \min(1, \max(0, \gamma + (\zeta - \gamma)\, \sigma((l + \operatorname{logit} u) /
    \lambda)))$ and γ < 0, ζ > 1. Unlike those of `Concrete` the gates are 0 and 1 with positive probability, so that f
    sees a network from which units are gone, and still has a gradient wherever they are in between. It is the unbiased
    gradient of E[f(z)] for these gates z; those of the Bernoulli variables have another one.

    Training gates to be few is `loss = estimator(q, f) + weight * estimator.expected_l0(q)`, where `expected_l0` is
    the number of gates of an event that are not 0, in the mean. `deterministic_gates(q)` are those to keep afterwards.
    In evaluation mode without gradients the value is f at hard gates, as for `Concrete`.

    Requirements: an f that is differentiable in z. Cost: one evaluation of f and of its gradient per sample.

    Args:
        temperature: λ, positive, or a `Schedule` that it follows. Below 1 most gates are at the ends.
        low: γ, negative: where the stretched gates begin.
        high: ζ, above 1: where they end.
        num_samples: Samples per batch element.
        coupling: How these depend on one another; see `GradientEstimator`.

    Raises:
        ValueError: The temperature is not positive, or `low` and `high` are not outside of [0, 1]; f cannot be
            differentiated in z.

    Source: Louizos, Welling & Kingma (2018), *Learning sparse neural networks through L0 regularization*, eqs. 10 to
    13, whose defaults these are, https://arxiv.org/abs/1712.01312.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Independent
        >>> _ = torch.manual_seed(0)
        >>> logits = torch.full((4,), 2.0, requires_grad=True)  # four gates, of which the last two are of no use
        >>> estimator, optimizer = HardConcrete(num_samples=10), torch.optim.Adam([logits], lr=0.3)
        >>> for _ in range(60):
        ...     q = Independent(Bernoulli(logits=logits), 1)
        ...     loss = estimator(q, lambda z: (1 - z[..., :2]).square().sum(-1)) + 0.1 * estimator.expected_l0(q)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        >>> estimator.deterministic_gates(q).detach()
        tensor([1., 1., 0., 0.])
    """

    families: ClassVar[tuple[type[Distribution], ...]] = (Bernoulli,)
    gradient_of_f: ClassVar[Literal["none", "samples", "relaxed"]] = "relaxed"

    def __init__(
        self,
        temperature: float | Schedule = 2 / 3,
        low: float = -0.1,
        high: float = 1.1,
        num_samples: int = 1,
        coupling: Coupling = "independent",
    ) -> None:
        super().__init__(num_samples, coupling)
        if not (-math.inf < low < 0 and 1 < high < math.inf):
            raise ValueError(f"HardConcrete stretches gates beyond 0 and 1 on both sides, got {low=!r} and {high=!r}.")
        self.low, self.high = low, high
        self.start_temperature(temperature, learn=False)

    def is_unbiased(self, q: Distribution) -> bool:
        """It never is, of Bernoulli gates."""
        return False

    def evaluations(self, q: Distribution) -> tuple[int, int]:
        """Return one evaluation of f and one of its gradient per sample."""
        return self.num_samples, self.num_samples

    def is_pathwise(self, q: Distribution) -> bool:
        """The value carries the gradient."""
        return True

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Return f at the stretched and clipped gates."""
        relaxation = relaxation_of(q)
        z = relaxation.draw()
        if not self.training and not torch.is_grad_enabled():
            return Estimate(f(relaxation.harden(z)))
        gates = self._stretched(relaxation.soften(z, self.log_temperature.exp()))
        value = f(gates)
        check_differentiable(self, value, gates)
        return Estimate(value)

    def expected_l0(self, q: Distribution) -> Tensor:
        r"""Return how many gates of an event are not 0 in the mean, attached to the parameters of q.

        Each with probability $\sigma(l - \lambda \log(-\gamma / \zeta))$.

        Args:
            q: Bernoulli variables, the logits l of which are those of the gates.

        Returns:
            Tensor of shape `q.batch_shape`.

        Raises:
            TypeError: q are no Bernoulli variables.
        """
        self.check(q)
        zero = self.log_temperature.detach().exp() * math.log(-self.low / self.high)
        open_ = torch.sigmoid(exact_logits(q) - zero)
        return open_.sum(tuple(range(-len(q.event_shape), 0))) if q.event_shape else open_

    def deterministic_gates(self, q: Distribution) -> Tensor:
        r"""Return the gates of a trained network, $\min(1, \max(0, \gamma + (\zeta - \gamma)\, \sigma(l)))$, attached.

        Args:
            q: Bernoulli variables, the logits l of which are those of the gates.

        Returns:
            Tensor of shape `q.batch_shape + q.event_shape`.

        Raises:
            TypeError: q are no Bernoulli variables.
        """
        self.check(q)
        return self._stretched(torch.sigmoid(exact_logits(q)))

    def _stretched(self, soft: Tensor) -> Tensor:
        return (self.low + (self.high - self.low) * soft).clamp(0, 1)

    def diagnostics(self) -> dict[str, Tensor]:
        """Return `temperature`."""
        return {**super().diagnostics(), "temperature": self.temperature}

    def extra_repr(self) -> str:
        """Show the settings."""
        now = f"temperature={self.temperature.item():.4g}, low={self.low}, high={self.high}"
        return f"{now}, {super().extra_repr()}"
