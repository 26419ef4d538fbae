"""The gradient rules of the Poisson and the negative binomial distribution."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, NegativeBinomial, Poisson
from torch.nn.functional import logsigmoid, softplus

from lightning_estimators.distributions import distribution_parameters
from lightning_estimators.objectives import Objective
from lightning_estimators.rules.base import register_cumulant, register_rule
from lightning_estimators.rules.jumps import jump_noise

__all__ = ["negative_binomial_cumulant", "negative_binomial_rule", "poisson_cumulant", "poisson_rule"]


@register_rule(Poisson, f_gradient=False)
def poisson_rule(q: Distribution, z: Tensor, f: Objective) -> dict[str, Tensor]:
    r"""Return $\partial_\lambda = f(z + 1) - f(z)$."""
    return {"rate": f.weighted_change(z, z + 1, torch.ones_like(z))}


@register_rule(NegativeBinomial, f_gradient=False)
def negative_binomial_rule(q: Distribution, z: Tensor, f: Objective) -> dict[str, Tensor]:
    r"""Return $\partial_r = -\log(1 - p) [f(z + K) - f(z)]$ and $\partial_p = \frac{r}{1 - p} [f(z + G) - f(z)]$.

    As in torch, $P(z) \propto (1 - p)^r p^z$. K has the logarithmic distribution with parameter p, and G the geometric
    distribution on 1, 2, ... with success probability 1 − p. With respect to the logits of p, the second formula is
    $r p\, [f(z + G) - f(z)]$.

    Source: K is drawn as in Kemp (1981), *Efficient generation of logarithmically distributed pseudo-random variables*,
    https://doi.org/10.2307/2346348.
    """
    parameters = distribution_parameters(q)
    total, logits = parameters["total_count"].detach(), parameters["logits"].detach()
    log_p, log_failure = logsigmoid(logits), -softplus(logits)
    u, v, w = jump_noise(q), jump_noise(q), jump_noise(q)
    # Kemp (1981): 1 + floor(log v / log(1 - (1 - p)^u)) has the logarithmic distribution.
    logarithmic = 1 + torch.floor(v.log() / _log1mexp(u * log_failure))
    geometric = 1 + torch.floor(w.log() / log_p)
    by_count, by_logits = -log_failure, total * log_p.exp()
    return {
        "total_count": by_count * f.weighted_change(z, z + logarithmic, by_count),
        "logits": by_logits * f.weighted_change(z, z + geometric, by_logits),
    }


def _log1mexp(x: Tensor) -> Tensor:
    """Return log(1 − eˣ) for x < 0, accurate also where eˣ is small beside 1."""
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-x.exp()))


@register_cumulant(Poisson)
def poisson_cumulant(parameters: dict[str, Tensor], t: Any) -> Any:
    """Return λ(eᵗ − 1)."""
    return parameters["rate"] * torch.expm1(t)


@register_cumulant(NegativeBinomial)
def negative_binomial_cumulant(parameters: dict[str, Tensor], t: Any) -> Any:
    """Return r [log(1 − p) − log(1 − p eᵗ)]."""
    p = parameters["logits"].sigmoid()
    return parameters["total_count"] * (torch.log1p(-p) - torch.log1p(-p * t.exp()))
