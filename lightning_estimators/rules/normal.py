"""The gradient rules of normal variables: Bonnet's and Price's theorems, and measure-valued derivatives."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, Normal

from lightning_estimators.distributions import distribution_parameters
from lightning_estimators.noise import CommonNoise
from lightning_estimators.objectives import Objective
from lightning_estimators.objectives.derivatives import NotTwiceDifferentiableError, differentiated_twice
from lightning_estimators.rules.base import register_cumulant, register_rule
from lightning_estimators.rules.jumps import exponential

__all__ = ["multivariate_normal_derivatives", "normal_cumulant", "normal_derivatives", "normal_differences"]


@register_rule(Normal, f_gradient=True)
def normal_derivatives(q: Distribution, z: Tensor, f: Objective) -> dict[str, Tensor]:
    r"""Return $\partial_\mu = f'(z)$ (Bonnet) and $\partial_\sigma = \sigma f''(z)$ (Price), coordinate by coordinate.

    If f contains another estimator, its second derivative is not available, since the gradient of an estimator cannot
    be differentiated. Then $\partial_\sigma = f'(z) (z - \mu) / \sigma$, which has the same mean by integration by
    parts.

    Source: Echraibi et al. (2020), *Generalized stochastic backpropagation*, eq. 14, https://hal.science/hal-02968975;
    Rezende, Mohamed & Wierstra (2014), *Stochastic backpropagation and approximate inference in deep generative
    models*, eqs. 7 and 8, https://arxiv.org/abs/1401.4082.
    """
    loc, scale = (distribution_parameters(q)[name].detach() for name in ("loc", "scale"))
    try:
        curvature = f.coordinate_derivative(z, 2)
    except NotTwiceDifferentiableError:
        gradient = f.coordinate_derivative(z)
        return {"loc": gradient, "scale": gradient * (z - loc) / scale}
    return {"loc": f.coordinate_derivative(z), "scale": scale * curvature}


@register_rule(Normal, f_gradient=False)
def normal_differences(q: Distribution, z: Tensor, f: Objective) -> dict[str, Tensor]:
    r"""Return the measure-valued derivatives in mean μ and standard deviation σ, from differences of f at five points.

    The derivative of the density in a parameter is a multiple of the difference of two densities. With W from the
    Rayleigh distribution, R from that of the length of three standard normal numbers (Maxwell), and $z - \mu$,

    $\partial_\mu = \frac{1}{\sigma \sqrt{2 \pi}} [f(\mu + \sigma W) - f(\mu - \sigma W)]$ and
    $\partial_\sigma = \frac{1}{2 \sigma} [f(\mu + \sigma R) + f(\mu - \sigma R) - f(z) - f(2 \mu - z)]$.

    R is made from z, as the length of a vector of which $(z - \mu) / \sigma$ is one entry: the nearer the points, the
    smaller the variance. The average over both signs takes out what is odd around μ.

    Source: Mohamed, Rosca, Figurnov & Mnih (2020), *Monte Carlo gradient estimation in machine learning*, table 1,
    https://arxiv.org/abs/1906.10652; the coupling is that of Heidergott, Vázquez-Abad & Volk-Makarewicz (2008),
    *Sensitivity estimation for Gaussian systems*, https://doi.org/10.1016/j.ejor.2007.03.047.
    """
    loc, scale = (distribution_parameters(q)[name].detach() for name in ("loc", "scale"))
    rayleigh, further = (scale * (2 * exponential(q)).sqrt() for _ in range(2))
    by_loc = 1 / (scale * math.sqrt(2 * math.pi))
    right, left = (f.weighted_change(z, loc + step, by_loc) for step in (rayleigh, -rayleigh))
    deviation = z - loc
    maxwell, by_scale = torch.hypot(deviation, further), 1 / (2 * scale)
    outer = sum(f.weighted_change(z, loc + step, by_scale) for step in (maxwell, -maxwell))
    inner = f.weighted_change(z, loc - deviation, by_scale)
    return {"loc": by_loc * (right - left), "scale": by_scale * (outer - inner)}


@register_rule(MultivariateNormal, f_gradient=True)
def multivariate_normal_derivatives(q: Distribution, z: Tensor, f: Objective) -> dict[str, Tensor]:
    r"""Return $\partial_\mu = \nabla f(z)$ and $\partial_L = \operatorname{tril}(\nabla^2 f(z) L)$.

    L is the lower triangular factor of the covariance, Σ = L Lᵀ. If f contains another estimator, its Hessian is not
    available (see `normal_derivatives`), and integration by parts gives
    $\partial_L = \operatorname{tril}(\nabla f(z)\, \varepsilon^\top)$ with $\varepsilon = L^{-1} (z - \mu)$.

    Cost: the Hessian of f takes two backward passes at D copies of z, one for each of its D entries.

    Source: Echraibi et al. (2020), *Generalized stochastic backpropagation*, eq. 14, with
    $\frac12 \operatorname{tr}(\nabla^2 f\, d\Sigma)$ as a function of L, https://hal.science/hal-02968975.
    """
    loc, factor = (distribution_parameters(q)[name].detach() for name in ("loc", "scale_tril"))
    try:
        gradient, hessian = _gradient_and_hessian(z, f)
    except NotTwiceDifferentiableError:
        gradient = f.coordinate_derivative(z)
        noise = torch.linalg.solve_triangular(factor, (z - loc).unsqueeze(-1), upper=False)
        return {"loc": gradient, "scale_tril": (gradient.unsqueeze(-1) * noise.mT).tril()}
    return {"loc": gradient, "scale_tril": (hessian @ factor).tril()}


def _gradient_and_hessian(z: Tensor, f: Objective) -> tuple[Tensor, Tensor]:
    """Return the gradient of f, and its Hessian in each vector of the event.

    An event may consist of several independent vectors. Derivatives with respect to entries of two different vectors
    are not part of the rule.
    """
    lead = z.shape[: z.ndim - f.event_dim]
    entries, size = z.shape[z.ndim - f.event_dim :].numel(), z.shape[-1]
    noise = CommonNoise(z.device)
    with torch.enable_grad(), differentiated_twice(), noise.replay(new_axis=len(lead)):
        # From copy i of z comes row i of the Hessian.
        copies = z.detach().expand(entries, *z.shape).clone().requires_grad_()
        (gradient,) = torch.autograd.grad(
            f(copies).sum(), copies, create_graph=True, allow_unused=True, materialize_grads=True
        )
        rows = gradient.reshape(entries, lead.numel(), entries).diagonal(dim1=0, dim2=2)
        hessian = torch.zeros_like(copies)
        if rows.requires_grad:
            (hessian,) = torch.autograd.grad(rows.sum(), copies, allow_unused=True, materialize_grads=True)
    blocks = hessian.reshape(entries // size, size, lead.numel(), entries // size, size).diagonal(dim1=0, dim2=3)
    return gradient[0].detach(), blocks.permute(1, 3, 0, 2).reshape(*z.shape, size)


@register_cumulant(Normal)
def normal_cumulant(parameters: dict[str, Tensor], t: Any) -> Any:
    """Return μt + σ²t²/2."""
    return parameters["loc"] * t + (parameters["scale"] * t) ** 2 / 2
