r"""The gradient rules of the Dirichlet and the beta distribution, which are normalised gamma variables.

If $g_i \sim \Gamma(\alpha_i, 1)$ are independent, z = g / Σg has the Dirichlet distribution. The sum
G = Σg ~ Γ(Σα, 1) is independent of z, so a value of G can be drawn for any sample z. When $g_i$ jumps by x, z moves
towards the corner $e_i$ of the simplex, to z' = z + w (e_i − z) with w = x / (G + x). The gamma rule for $\alpha_i$ is
the integral of $[f(z') - f(z)]\, e^{-x} / x$ over x > 0.

For a single gamma variable, x = sT is drawn with s uniform and T ~ Exp(1). Here this would have infinite variance when
Σα ≤ 1, since the difference of f is about as large as min(1, x / G), while G can be tiny. So x is drawn between 0 and T
such that log(G + x) is uniform. G underflows for α near 0, so only its logarithm is used.

Source: Echraibi et al. (2020), *Generalized stochastic backpropagation*, eqs. 20 and 21, in jump form,
https://hal.science/hal-02968975.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Beta, Dirichlet, Distribution
from torch.nn.functional import softplus

from lightning_estimators.distributions import distribution_parameters, log_gamma_sample
from lightning_estimators.noise import uniform
from lightning_estimators.objectives import Objective
from lightning_estimators.rules.base import register_rule
from lightning_estimators.rules.jumps import exponential, jump_noise

__all__ = ["beta_derivatives", "beta_differences", "dirichlet_derivatives", "dirichlet_differences"]


@register_rule(Dirichlet, f_gradient=False)
def dirichlet_differences(q: Distribution, z: Tensor, f: Objective) -> dict[str, Tensor]:
    r"""Return $\partial_{\alpha_i} = [f(z') - f(z)] \log(1 + T/G) / w$; f may be a black box."""
    w, weight = _difference_jump(q, _log_total(q))
    change = f.weighted_change(z, _towards_corners(z, w), weight.movedim(-1, 0))
    return {"concentration": change.movedim(0, -1) * weight}


@register_rule(Dirichlet, f_gradient=True)
def dirichlet_derivatives(q: Distribution, z: Tensor, f: Objective) -> dict[str, Tensor]:
    r"""Return $\partial_{\alpha_i} = \langle \nabla f(z'), e_i - z' \rangle \log(1 + T/G) / T$.

    T is drawn by importance sampling, see `_derivative_jump`.
    """
    w, weight = _derivative_jump(q, _log_total(q))
    moved = _towards_corners(z, w)
    corners = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    corners = corners.reshape(-1, *(1,) * (z.ndim - 1), z.shape[-1])
    slope = f.coordinate_slope(z, moved, corners - moved)
    return {"concentration": slope.movedim(0, -1) * weight}


@register_rule(Beta, f_gradient=False)
def beta_differences(q: Distribution, z: Tensor, f: Objective) -> dict[str, Tensor]:
    """Return the rule of a Dirichlet variable (z, 1 - z) with parameters (concentration1, concentration0)."""
    log_total = _log_total(q)
    (up, weight_up), (down, weight_down) = _difference_jump(q, log_total), _difference_jump(q, log_total)
    return {
        "concentration1": f.weighted_change(z, z + up * (1 - z), weight_up) * weight_up,
        "concentration0": f.weighted_change(z, z - down * z, weight_down) * weight_down,
    }


@register_rule(Beta, f_gradient=True)
def beta_derivatives(q: Distribution, z: Tensor, f: Objective) -> dict[str, Tensor]:
    """Return the rule of a Dirichlet variable (z, 1 - z) with parameters (concentration1, concentration0)."""
    log_total = _log_total(q)
    (up, weight_up), (down, weight_down) = _derivative_jump(q, log_total), _derivative_jump(q, log_total)
    above, below = z + up * (1 - z), z - down * z
    return {
        "concentration1": f.coordinate_slope(z, above) * (1 - above) * weight_up,
        "concentration0": -f.coordinate_slope(z, below) * below * weight_down,
    }


def _log_total(q: Distribution) -> Tensor:
    """Draw log G, one number for each variable, and expand it to the shape of z."""
    parameters = [p.detach() for p in distribution_parameters(q).values()]
    if len(parameters) == 2:
        return log_gamma_sample(parameters[0] + parameters[1], jump_noise(q))
    (alpha,) = parameters
    lead = len(q.batch_shape)
    u = uniform(alpha.shape[:lead], (*alpha.shape[lead:-1], 1), dtype=alpha.dtype, device=alpha.device)
    return log_gamma_sample(alpha.sum(-1, keepdim=True), u).expand_as(alpha)


def _difference_jump(q: Distribution, log_total: Tensor) -> tuple[Tensor, Tensor]:
    """Draw the relative jump w, and return it and the importance weight log(1 + T/G) / w."""
    spread = softplus(exponential(q).log() - log_total)  # log(1 + T/G)
    w = -torch.expm1(-jump_noise(q) * spread)
    return w, spread / w


def _derivative_jump(q: Distribution, log_total: Tensor) -> tuple[Tensor, Tensor]:
    """Draw the relative jump w, and return it and its importance weight.

    If T were drawn from Exp(1), the weight log(1 + T/G) / T would have infinite variance. So T is drawn from a mixture:
    with probability 1/2 from (0, 1) such that log(G + T) is uniform, and with probability 1/2 as 1 + Exp(1). The weight
    contains the density of Exp(1) divided by that of the mixture.
    """
    span = softplus(-log_total)  # log(1 + 1/G)
    y = (jump_noise(q) * span).clamp_min(torch.finfo(span.dtype).eps)
    log_t_over_g = y + torch.log(-torch.expm1(-y))  # log(e^y - 1), without overflow
    near = (log_total + log_t_over_g).exp()
    far = 1 + exponential(q)
    is_near = jump_noise(q) < 0.5
    spread = torch.where(is_near, y, softplus(far.log() - log_total))  # log(1 + T/G)
    # Near: e^-T (T + G) span / (1/2) · spread / T; far: e^-T / (e^(1 - T) / 2) · spread / T.
    weight = torch.where(is_near, 2 * (-near).exp() * span * (1 + (-log_t_over_g).exp()), 2 / math.e / far) * spread
    return -torch.expm1(-jump_noise(q) * spread), weight


def _towards_corners(z: Tensor, w: Tensor) -> Tensor:
    """Return z + w_i (e_i - z) for every corner i, as alternatives for z: shape `(K,)` + the shape of z."""
    corners = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    corners = corners.reshape(-1, *(1,) * (z.ndim - 1), z.shape[-1])
    return z + w.movedim(-1, 0).unsqueeze(-1) * (corners - z)
