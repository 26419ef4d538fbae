"""ReinMax: straight-through with second-order accuracy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution

from lightning_estimators.distributions import base_distribution, probabilities
from lightning_estimators.estimators.relaxation import relaxation_of
from lightning_estimators.estimators.straight_through_estimator import StraightThroughEstimator
from lightning_estimators.estimators.temperature import HasTemperature
from lightning_estimators.noise import Coupling
from lightning_estimators.schedules import Schedule

__all__ = ["ReinMax"]


class ReinMax(HasTemperature, StraightThroughEstimator):
    r"""Evaluates f at the sample and backpropagates through probabilities halfway towards it: biased, but little.

    With $J(\pi) = \operatorname{diag}(\pi) - \pi \pi^T$, the derivative of a softmax, and
    $\pi_z = \frac12 [\operatorname{softmax}(l / \lambda) + z]$ it is $\hat g_l = [2 J(\pi_z) - \frac12 J(\pi)] f'(z)$.
    For Bernoullis this is, at λ = 1, $\frac12 |b - p|\, f'(b)$.

    At λ = 1 it is exact, for Bernoullis and for categoricals, where f is quadratic in each variable given the others,
    of whatever form in all together: a difference of f between two values of a variable is then that variable's step
    times the mean of the slopes at both ends (the trapezoidal rule). `StraightThrough` is so for linear f only. A
    higher λ has less variance and more bias.

    The Rao-Blackwellised and control-variate forms of Wang & Bui (2026), *Beyond ReinMax*,
    https://arxiv.org/abs/2603.08257, are left out. On the model of 20 categorical latents of the table of record
    after 1,000 steps, where the squared norm of the gradient in the logits of an example is 6.5, ReinMax has variance
    70 and a squared bias of less than 0.1. The first form has 59 and 0.6 at temperature 0.5, and 36 and 1.9 at 1
    (`StraightThrough`: 21 and 2.0); the second has 84 and less than 0.1 with the weight of the paper, 69 with a third.

    Requirements: an f that is differentiable in z. Cost: one evaluation of f and of its gradient per sample.

    Args:
        temperature: λ, positive, or a `Schedule` that it follows.
        num_samples: Samples per batch element.
        coupling: How these depend on one another; see `GradientEstimator`.

    Raises:
        ValueError: The temperature is not positive; f cannot be differentiated in z.

    Source: Liu, Dong, Liu, Yu & Gao (2023), *Bridging discrete and backpropagation: straight-through and beyond*,
    algorithm 2, https://arxiv.org/abs/2304.08612. At λ = 1 it equals the estimator that is the limit of `GumbelRao` at
    temperature 0 in Shekhovtsov (2023), *Cold analysis of Rao-Blackwellized straight-through Gumbel-softmax gradient
    estimator*, https://proceedings.mlr.press/v202/shekhovtsov23a.html. For Bernoullis the ½ |b − p| is that of Gregor
    et al. (2014), *Deep autoregressive networks*, https://arxiv.org/abs/1310.8499.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Independent
        >>> _ = torch.manual_seed(0)
        >>> logits = torch.zeros(1, 3, requires_grad=True)
        >>> q = Independent(Bernoulli(logits=logits), 1)
        >>> loss = ReinMax(num_samples=10_000)(q, lambda b: (b - 0.45).square().sum(-1))
        >>> loss.mean().backward()
        >>> bool(((logits.grad - 0.025).abs() < 0.01).all())  # p (1 - p) [f(1) - f(0)]: f is quadratic
        True
    """

    def __init__(
        self, temperature: float | Schedule = 1.0, num_samples: int = 1, coupling: Coupling = "independent"
    ) -> None:
        super().__init__(num_samples, coupling)
        self.start_temperature(temperature, learn=False)

    def stand_in(self, q: Distribution, z: Tensor) -> Tensor:
        """Return what has the derivative 2 J(π_z) - J(π) / 2."""
        logits = relaxation_of(q).logits
        with torch.no_grad():
            cooled = logits / self.log_temperature.exp()
        if isinstance(base_distribution(q), Bernoulli):
            with torch.no_grad():
                # Both probabilities of a pair, each by itself: one minus the other would round to 0.
                on, off = (cooled.sigmoid() + z) / 2, ((-cooled).sigmoid() + 1 - z) / 2
                slope = 2 * on * off - logits.sigmoid() * (-logits).sigmoid() / 2
            return slope * logits
        halfway = (cooled.softmax(-1) + z) / 2
        return 2 * (halfway.log() + (logits - logits.detach())).softmax(-1) - probabilities(q) / 2

    def diagnostics(self) -> dict[str, Tensor]:
        """Return `temperature`."""
        return {**super().diagnostics(), "temperature": self.temperature}

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"temperature={self.temperature.item():.4g}, {super().extra_repr()}"
