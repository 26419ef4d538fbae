"""The rules of the normal distribution, diagonal and full: Bonnet's and Price's theorems."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, Normal

from lightning_estimators.distributions import distribution_parameters
from lightning_estimators.objectives import Objective
from lightning_estimators.rules.base import register_cumulant, register_rule

__all__ = ["multivariate_normal_derivatives", "normal_cumulant", "normal_derivatives"]


@register_rule(Normal, f_gradient=True)
def normal_derivatives(q: Distribution, z: Tensor, f: Objective) -> dict[str, Tensor]:
    r"""Return $\partial_\mu = f'(z)$ (Bonnet) and $\partial_\sigma = \sigma f''(z)$ (Price), coordinate by coordinate.

    Source: Echraibi et al. (2020), eq. 14; Rezende, Mohamed & Wierstra (2014), eqs. 7 and 8.
    """
    scale = distribution_parameters(q)["scale"].detach()
    return {"loc": f.coordinate_derivative(z), "scale": scale * f.coordinate_derivative(z, 2)}


@register_rule(MultivariateNormal, f_gradient=True)
def multivariate_normal_derivatives(q: Distribution, z: Tensor, f: Objective) -> dict[str, Tensor]:
    r"""Return $\partial_\mu = \nabla f(z)$ and $\partial_L = \operatorname{tril}(\nabla^2 f(z) L)$, Σ = L Lᵀ.

    Cost: the Hessian of f, two nested reverse passes at D copies of z.

    Source: Echraibi et al. (2020), eq. 14, with $\frac12 \operatorname{tr}(\nabla^2 f\, d\Sigma)$ written in L.
    """
    factor = distribution_parameters(q)["scale_tril"].detach()
    size = z.shape[-1]
    with torch.enable_grad():
        # Copy i of z yields row i of the Hessian.
        copies = z.detach().expand(size, *z.shape).clone().requires_grad_()
        (gradient,) = torch.autograd.grad(
            f(copies).sum(), copies, create_graph=True, allow_unused=True, materialize_grads=True
        )
        rows = gradient.diagonal(dim1=0, dim2=-1)
        if rows.requires_grad:
            (hessian,) = torch.autograd.grad(rows.sum(), copies, allow_unused=True, materialize_grads=True)
        else:
            hessian = torch.zeros_like(copies)
    return {"loc": gradient[0].detach(), "scale_tril": (hessian.movedim(0, -2) @ factor).tril()}


@register_cumulant(Normal)
def normal_cumulant(parameters: dict[str, Tensor], t: Any) -> Any:
    """Return μt + σ²t²/2."""
    return parameters["loc"] * t + (parameters["scale"] * t) ** 2 / 2
