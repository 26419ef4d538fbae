"""G-REP: a standardisation that weakens the dependence on the parameters, and a correction for what remains."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.distributions import Beta, Distribution, Gamma, LogNormal
from torch.nn.functional import logsigmoid

from lightning_estimators.distributions import base_distribution, log_gamma_sample, sample
from lightning_estimators.estimators.base import GradientEstimator
from lightning_estimators.estimators.cost_gradient import check_differentiable
from lightning_estimators.estimators.estimate import Estimate
from lightning_estimators.objectives import Objective
from lightning_estimators.rules.jumps import jump_noise

__all__ = ["GeneralizedReparameterization"]


class GeneralizedReparameterization(GradientEstimator):
    r"""Estimates the gradient as $\nabla f(T_\theta(\varepsilon)) + f(z) \nabla \log q_\theta(\varepsilon)$; unbiased.

    ε standardises z on the scale of its logarithm: gamma,
    $\varepsilon = (\log z - \psi(k) - \log \mu) / \sqrt{\psi'(k)}$; beta, the logit of z in the same way; log-normal,
    its logarithm, which leaves no correction. $T_\theta$ inverts it, and the density of ε still depends on θ.

    Requirements: a gamma, beta or log-normal q; an f that is differentiable in z. Cost: one evaluation of f and of its
    gradient per sample.

    Args:
        num_samples: Samples per batch element.
        coupling: How these depend on one another; see `GradientEstimator`.

    Raises:
        TypeError: q is of another family.
        ValueError: f cannot be differentiated in z.

    Source: Ruiz, Titsias & Blei (2016), *The generalized reparameterization gradient*, eqs. 5 to 8 and appendix,
    https://arxiv.org/abs/1610.02287.

    Example:
        >>> import torch
        >>> from torch.distributions import Gamma
        >>> _ = torch.manual_seed(0)
        >>> shape = torch.full((10000,), 3.0, requires_grad=True)
        >>> GeneralizedReparameterization()(Gamma(shape, torch.tensor(2.0)), lambda z: z).sum().backward()
        >>> round(shape.grad.mean().item(), 1)  # d/d shape of shape / 2
        0.5
    """

    families: ClassVar[tuple[type[Distribution], ...]] = (Gamma, Beta, LogNormal)
    gradient_of_f: ClassVar[Literal["none", "samples", "relaxed"]] = "samples"

    def is_unbiased(self, q: Distribution) -> bool:
        """It always is."""
        return True

    def evaluations(self, q: Distribution) -> tuple[int, int]:
        """Return one evaluation of f and one of its gradient per sample."""
        return self.num_samples, self.num_samples

    def is_pathwise(self, q: Distribution) -> bool:
        """The value carries the gradient."""
        return True

    def is_twice_differentiable(self, q: Distribution) -> bool:
        """It is not: f weights the score as a number."""
        return False

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Let f carry its gradient along the transformation, and add the score of the standardised noise, times f."""
        base = base_distribution(q)
        location, spread = _moments(base)
        y = location + spread * ((_draw(q) - location) / spread).detach()
        z = y.sigmoid() if isinstance(base, Beta) else y.exp()
        value = f(z)
        check_differentiable(self, value, z)
        # The density of the noise: that of y, times the derivative of y.
        log_density = (_log_density(base, y) + spread.log()).reshape(*value.shape, q.event_shape.numel()).sum(-1)
        # Times 1, whose derivative is the score. f is no number there: the gradient has derivatives in weights of f.
        return Estimate(value * (log_density - log_density.detach()).exp())


def _moments(base: Distribution) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of y: log z, for a beta logit z."""
    if isinstance(base, Gamma):
        shape = base.concentration
        return torch.digamma(shape) - base.rate.log(), torch.polygamma(1, shape).sqrt()
    if isinstance(base, Beta):
        a, b = base.concentration1, base.concentration0
        return torch.digamma(a) - torch.digamma(b), (torch.polygamma(1, a) + torch.polygamma(1, b)).sqrt()
    normal = base.base_dist  # type: ignore[attr-defined]
    return normal.loc, normal.scale


def _draw(q: Distribution) -> Tensor:
    """Draw y. Not as the logarithm of a draw of z, which underflows to 0 where shapes are small."""
    base = base_distribution(q)
    with torch.no_grad():
        if isinstance(base, Gamma):
            return log_gamma_sample(base.concentration, jump_noise(q)) - base.rate.log()
        if isinstance(base, Beta):
            a, b = base.concentration1, base.concentration0
            return log_gamma_sample(a, jump_noise(q)) - log_gamma_sample(b, jump_noise(q))
        return sample(q).log()


def _log_density(base: Distribution, y: Tensor) -> Tensor:
    """Log density of y in the parameters of z."""
    if isinstance(base, Gamma):
        shape, rate = base.concentration, base.rate
        return shape * (y + rate.log()) - rate * y.exp() - torch.lgamma(shape)
    if isinstance(base, Beta):
        a, b = base.concentration1, base.concentration0
        log_beta = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
        return a * logsigmoid(y) + b * logsigmoid(-y) - log_beta
    normal = base.base_dist  # type: ignore[attr-defined]
    log_prob: Tensor = normal.log_prob(y)
    return log_prob
