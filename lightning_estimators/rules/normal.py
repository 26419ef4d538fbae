"""The rules of the normal distribution, diagonal and full: Bonnet's and Price's theorems."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, Normal

from lightning_estimators.distributions import distribution_parameters
from lightning_estimators.noise import CommonNoise
from lightning_estimators.objectives import Objective
from lightning_estimators.objectives.base import NotTwiceDifferentiableError, differentiated_twice
from lightning_estimators.rules.base import register_cumulant, register_rule

__all__ = ["multivariate_normal_derivatives", "normal_cumulant", "normal_derivatives"]


@register_rule(Normal, f_gradient=True)
def normal_derivatives(q: Distribution, z: Tensor, f: Objective) -> dict[str, Tensor]:
    r"""Return $\partial_\mu = f'(z)$ (Bonnet) and $\partial_\sigma = \sigma f''(z)$ (Price), coordinate by coordinate.

    Where f contains another estimator, whose gradient is a number and has no derivative, Price's rule is integrated by
    parts: $\partial_\sigma = f'(z) (z - \mu) / \sigma$, of the same mean.

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


@register_rule(MultivariateNormal, f_gradient=True)
def multivariate_normal_derivatives(q: Distribution, z: Tensor, f: Objective) -> dict[str, Tensor]:
    r"""Return $\partial_\mu = \nabla f(z)$ and $\partial_L = \operatorname{tril}(\nabla^2 f(z) L)$, Σ = L Lᵀ.

    Cost: the Hessian of f, two nested reverse passes at a copy of z for each of its entries. Around another estimator
    it is integrated by parts as for the diagonal normal:
    $\partial_L = \operatorname{tril}(\nabla f(z)\, \varepsilon^\top)$, $\varepsilon = L^{-1} (z - \mu)$.

    Source: Echraibi et al. (2020), https://hal.science/hal-02968975, eq. 14, with
    $\frac12 \operatorname{tr}(\nabla^2 f\, d\Sigma)$ written in L.
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
    """Return the gradient, and the Hessian in each vector of the event: what it shares with others has no part."""
    lead = z.shape[: z.ndim - f.event_dim]
    entries, size = z.shape[z.ndim - f.event_dim :].numel(), z.shape[-1]
    noise = CommonNoise(z.device)
    with torch.enable_grad(), differentiated_twice(), noise.replay(new_axis=len(lead)):
        # Copy i of z yields row i of the Hessian.
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
