"""The gradient rules of the Laplace distribution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Laplace

from lightning_estimators.distributions import distribution_parameters
from lightning_estimators.objectives import Objective
from lightning_estimators.rules.base import register_cumulant, register_rule
from lightning_estimators.rules.jumps import exponential

__all__ = ["laplace_cumulant", "laplace_derivatives", "laplace_differences"]


@register_rule(Laplace, f_gradient=False)
def laplace_differences(q: Distribution, z: Tensor, f: Objective) -> dict[str, Tensor]:
    r"""Return the gradient in location μ and scale b from differences of f, which may be a black box.

    With e exponential of mean b, and L ~ Laplace(0, b), it is
    $\partial_\mu = \frac{1}{2b} [f(\mu + e) - f(\mu - e)]$, the measure-valued derivative, and
    $\partial_b = \frac{1}{b} [f(z + L) + f(z - L) - 2 f(z)]$, the average over L and −L of
    $\frac{2}{b}[f(z + L) - f(z)]$.
    """
    loc, scale = _parameters(q)
    e = scale * exponential(q)
    # The difference of two independent exponential variables has the Laplace distribution.
    jump = scale * (exponential(q) - exponential(q))
    right, left = (f.weighted_change(z, loc + step, 0.5 / scale) for step in (e, -e))
    change = f.weighted_change(z, z + jump, 1 / scale) + f.weighted_change(z, z - jump, 1 / scale)
    return {"loc": (right - left) / (2 * scale), "scale": change / scale}


@register_rule(Laplace, f_gradient=True)
def laplace_derivatives(q: Distribution, z: Tensor, f: Objective) -> dict[str, Tensor]:
    r"""Return $\partial_\mu = f'(z)$ and $\partial_b = f'(z + e) - f'(z - e)$, with e exponential of mean b."""
    _, scale = _parameters(q)
    e = scale * exponential(q)
    change = f.coordinate_slope(z, z + e) - f.coordinate_slope(z, z - e)
    return {"loc": f.coordinate_derivative(z), "scale": change}


@register_cumulant(Laplace)
def laplace_cumulant(parameters: dict[str, Tensor], t: Any) -> Any:
    """Return μt − log(1 − b²t²).

    Source: Echraibi et al. (2020), *Generalized stochastic backpropagation*, eq. 18 and the text above it, where the
    location μ is left out, https://hal.science/hal-02968975.
    """
    return parameters["loc"] * t - torch.log1p(-((parameters["scale"] * t) ** 2))


def _parameters(q: Distribution) -> tuple[Tensor, Tensor]:
    parameters = distribution_parameters(q)
    return parameters["loc"].detach(), parameters["scale"].detach()
