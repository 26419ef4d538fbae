"""A check of the gradient rules and cumulant generating functions that are registered for a distribution family."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.distributions import Distribution

from lightning_estimators.distributions import distribution_parameters, rebuild, sample
from lightning_estimators.objectives import CallableObjective
from lightning_estimators.rules import Cumulant, Jet, Rule, cumulant_for, has_cumulant, has_rule, rule_for
from lightning_estimators.testing.statistics import Moments, Report, require

__all__ = ["check_family"]

COSTS: dict[str, Callable[[Tensor], Tensor]] = {
    "a square": lambda u: u**2 - 0.5 * u,
    "a wave": lambda u: torch.sin(1.7 * u),
    "a step": lambda u: torch.sigmoid(3 * u - 1),
}
"""Costs of u, a coordinate minus its mean in units of its standard deviation."""

MOMENTS = 3
"""How many moments of a cumulant generating function are compared with those of samples."""


def check_family(q: Distribution, *, num_samples: int = 200_000) -> Report:
    r"""Check the formulas that are registered for the family of q against samples of q and its density.

    - A *cumulant generating function* K must be 0 at t = 0, and the moments $E[z^n]$, n = 1, 2, 3, that follow from its
      Taylor coefficients must agree with those of the samples.
    - The mean of a *rule*, with or without derivatives of f, must agree with that of the score function estimator
      $(f(z) - c) \nabla_\theta \log q(z)$, for three costs: a square, a wave and a smooth step of each coordinate.

    All comparisons use fixed seeds and the same bound on |z|, `BOUND`. Give q several entries with different
    parameters: a formula that misses a factor is right where this factor happens to be 1.

    Args:
        q: A distribution of the family, with scalar coordinates; parameters of float64 make the comparison sharpest.
        num_samples: How many samples to draw.

    Returns:
        How many comparisons were made, and the largest |z|.

    Raises:
        AssertionError: Something differs; the message names the rule, the parameter, the figure and the bound.
        TypeError: Nothing is registered for the family; or a rule is registered, but q has no `log_prob`.

    Example:
        >>> from torch.distributions import Laplace
        >>> report = check_family(Laplace(torch.tensor([0.3, -1.0]), torch.tensor([0.8, 2.0])), num_samples=10_000)
        >>> sorted(report.largest_z)
        ['cumulant', 'rule(f_gradient=False)', 'rule(f_gradient=True)']
    """
    kinds = [f_gradient for f_gradient in (False, True) if has_rule(q, f_gradient=f_gradient)]
    if not kinds and not has_cumulant(q):
        raise TypeError(
            f"neither a rule nor a cumulant is registered for {type(q).__name__}: register one with "
            "lightning_estimators.rules.register_rule or register_cumulant, and check it then."
        )
    report = Report()
    state = torch.get_rng_state()
    try:
        torch.manual_seed(0)
        leaves = {
            name: p.detach().expand(num_samples, *p.shape).clone().requires_grad_()
            for name, p in distribution_parameters(q).items()
        }
        many = rebuild(q, leaves)
        if has_cumulant(q):
            _check_cumulant(cumulant_for(q), many, leaves, report)
        for f_gradient in kinds:
            _check_rule(rule_for(q, f_gradient=f_gradient), many, leaves, report, f"rule(f_gradient={f_gradient})")
    finally:
        torch.set_rng_state(state)
    return report


def _check_cumulant(cumulant: Cumulant, q: Distribution, leaves: dict[str, Tensor], report: Report) -> None:
    check, family = "cumulant", type(q).__name__
    z = sample(q).detach()
    one = {name: p.detach()[:1] for name, p in leaves.items()}
    zero = torch.zeros_like(z[:1])
    coefficients = cumulant(one, Jet([zero, zero + 1, *[zero] * (MOMENTS - 1)])).coefficients
    at_zero = coefficients[0].abs().max().item()
    require(at_zero < 1e-6, check, family, f"K(0) is log E[1] = 0 for every distribution, got {at_zero:.3g}")
    cumulants = [math.factorial(n) * c.expand_as(zero) for n, c in enumerate(coefficients)]
    moments = [zero + 1]
    for n in range(1, MOMENTS + 1):
        terms = (math.comb(n - 1, k - 1) * cumulants[k] * moments[n - k] for k in range(1, n + 1))
        moments.append(sum(terms, zero))
    found = Moments({f"E[z^{n}]": moments[n][0] for n in range(1, MOMENTS + 1)})
    found.add({f"E[z^{n}]": z**n for n in range(1, MOMENTS + 1)})
    report.unbiased(check, family, found, slack=1e-6)


def _check_rule(rule: Rule, q: Distribution, leaves: dict[str, Tensor], report: Report, check: str) -> None:
    z = sample(q).detach()
    try:
        log_prob = q.log_prob(z)
    except NotImplementedError as error:
        raise TypeError(
            f"{type(q).__name__} has no log_prob, which its rule is held to: give it one, if only for this check."
        ) from error
    scores = dict(zip(leaves, torch.autograd.grad(log_prob.sum(), list(leaves.values())), strict=True))
    event_dim = len(q.event_shape)
    # Both estimates are computed from the same samples, so their difference has much less variance than either.
    center, width = z.mean(0), z.std(0).clamp_min(torch.finfo(z.dtype).tiny)
    for what, cost in COSTS.items():
        f = CallableObjective(partial(_summed, cost, center, width, event_dim), event_dim)
        gradients = rule(q, z, f)
        missing = leaves.keys() - gradients.keys()
        require(not missing, check, type(q).__name__, f"the rule answers nothing for the parameters {sorted(missing)}")
        value = f(z)
        centered = value - value.mean(0)
        differences = {}
        for name, score in scores.items():
            found = gradients[name].detach()
            same = found.shape == score.shape
            require(
                same,
                check,
                type(q).__name__,
                f"the gradient of {name!r} must have the shape of the parameter, {tuple(score.shape)}, "
                f"got {tuple(found.shape)}",
            )
            axes = (...,) + (None,) * (score.ndim - centered.ndim)
            # The difference is divided by the size of both estimates, so that the slack for rounding is relative.
            size = (found.abs().mean(0) + (centered[axes] * score).abs().mean(0)).clamp_min(1e-30)
            differences[name] = (found - centered[axes] * score) / size
        moments = Moments({name: torch.zeros_like(d[0]) for name, d in differences.items()})
        moments.add(differences)
        report.unbiased(check, f"{type(q).__name__}, f is {what}", moments, slack=1e-6)


def _summed(cost: Callable[[Tensor], Tensor], center: Tensor, width: Tensor, event_dim: int, z: Tensor) -> Tensor:
    costs = cost((z - center) / width)
    return costs.sum(tuple(range(-event_dim, 0))) if event_dim else costs
