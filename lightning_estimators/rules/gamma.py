"""The gradient rules of the gamma distribution; exponential and chi-squared variables are gamma variables too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Exponential, Gamma

from lightning_estimators.distributions import distribution_parameters
from lightning_estimators.objectives import Objective
from lightning_estimators.rules.base import register_cumulant, register_rule
from lightning_estimators.rules.jumps import exponential, jump_noise

__all__ = ["gamma_cumulant", "gamma_derivatives", "gamma_differences"]


@register_rule(Exponential, f_gradient=False)
@register_rule(Gamma, f_gradient=False)
def gamma_differences(q: Distribution, z: Tensor, f: Objective) -> dict[str, Tensor]:
    r"""Return the gradient in shape k and rate from differences of f, which may be a black box.

    With the scale μ = 1 / rate, T exponential of mean μ, and s uniform on (0, 1), it is
    $\partial_\mu = \frac{k}{\mu} [f(z + T) - f(z)]$ and $\partial_k = [f(z + sT) - f(z)] / s$. The gradient in the rate
    is $-\mu^2 \partial_\mu$.
    """
    parameters = distribution_parameters(q)
    shape, scale = _shape_and_scale(parameters)
    by_rate = by_shape = None
    if "rate" in parameters:
        mean = shape * scale
        by_rate = -mean * f.weighted_change(z, z + scale * exponential(q), mean)  # -μ² · k/μ is minus the mean
    if "rate" not in parameters or len(parameters) == 2:
        s = jump_noise(q)
        by_shape = f.weighted_change(z, z + s * scale * exponential(q), 1 / s) / s
    return _by_name(parameters, by_rate, by_shape)


@register_rule(Exponential, f_gradient=True)
@register_rule(Gamma, f_gradient=True)
def gamma_derivatives(q: Distribution, z: Tensor, f: Objective) -> dict[str, Tensor]:
    r"""Return the gradient in shape k and rate from derivatives of f.

    With the scale μ = 1 / rate, T exponential of mean μ, and s uniform on (0, 1), it is
    $\partial_\mu = k f'(z + T)$ and $\partial_k = \mu f'(z + sT)$. The gradient in the rate is $-\mu^2 \partial_\mu$.
    """
    parameters = distribution_parameters(q)
    shape, scale = _shape_and_scale(parameters)
    by_rate = by_shape = None
    if "rate" in parameters:
        by_rate = -shape * scale**2 * f.coordinate_slope(z, z + scale * exponential(q))
    if "rate" not in parameters or len(parameters) == 2:
        by_shape = scale * f.coordinate_slope(z, z + jump_noise(q) * scale * exponential(q))
    return _by_name(parameters, by_rate, by_shape)


@register_cumulant(Exponential)
@register_cumulant(Gamma)
def gamma_cumulant(parameters: dict[str, Tensor], t: Any) -> Any:
    """Return −k log(1 − μt), with shape k and scale μ."""
    shape, scale = _shape_and_scale(parameters)
    return -shape * torch.log1p(-scale * t)


def _shape_and_scale(parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the shape and scale of a gamma (concentration, rate), exponential (rate) or chi-squared (df) variable."""
    if "df" in parameters:
        return parameters["df"] / 2, torch.full_like(parameters["df"], 2.0)
    rate = parameters["rate"]
    return parameters.get("concentration", torch.ones_like(rate)), 1 / rate


def _by_name(parameters: dict[str, Tensor], by_rate: Tensor | None, by_shape: Tensor | None) -> dict[str, Tensor]:
    named = {"rate": by_rate, "concentration": by_shape, "df": None if by_shape is None else by_shape / 2}
    return {name: gradient for name, gradient in named.items() if name in parameters and gradient is not None}
