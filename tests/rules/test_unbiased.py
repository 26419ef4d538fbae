"""Every rule and every continuous estimator against quadrature, in one variable, at ordinary and extreme parameters."""

import pytest
import torch
from torch.distributions import Beta, Chi2, Gamma, Normal

from lightning_estimators.baselines import NoBaseline
from lightning_estimators.estimators import (
    LAX,
    REINFORCE,
    GeneralizedReparameterization,
    Pathwise,
    StochasticBackprop,
)
from lightning_estimators.networks import Surrogate
from lightning_estimators.testing import COMPARISONS, Report

from .oracle import CONTINUOUS, COSTS, COUNTS, Case, exact, relative_moments

REPORT = Report()
"""Of all comparisons of this file: they share one rate of false alarms, `testing.FALSE_ALARM_RATE`."""

SAMPLES = 200_000

SLACK = 1e-9
"""Relative to the gradient, beside standard errors: what float64 and the quadrature leave where nothing varies."""

IMPLICIT = 2e-3
"""Relative error of torch's implicit derivatives of gamma and beta samples, which are fits, not exact."""

ESTIMATORS = {
    "differences": lambda: StochasticBackprop(f_gradient=False),
    "derivatives": lambda: StochasticBackprop(f_gradient=True),
    "Pathwise": Pathwise,
    "LAX": lambda: LAX(Surrogate(hidden=[3], activation="tanh")),
    "GREP": GeneralizedReparameterization,
    "REINFORCE": lambda: REINFORCE(NoBaseline()),
}


ROUNDED = Case(Beta, {"concentration1": 0.05, "concentration0": 0.08})
"""A twentieth of its samples is within 1e-16 of 1, where float64 has lost log(1 - z), and with it the score."""


def supports(name: str, case: Case) -> bool:
    if case == ROUNDED and name in ("LAX", "REINFORCE"):
        return False
    if name == "differences":
        return True
    if name == "GREP":
        return case.family in (Gamma, Chi2, Beta)
    return case in CONTINUOUS or name == "REINFORCE"


def fits(name: str, case: Case, cost: str) -> bool:
    """Price's rule needs a second derivative, which a kink has not."""
    return not (name == "derivatives" and case.family is Normal and cost == "kinked")


CASES = [
    pytest.param(name, case, id=f"{name}-{case}")
    for name in ESTIMATORS
    for case in CONTINUOUS + COUNTS
    if supports(name, case)
]


def estimates(name: str, case: Case, cost: str, samples: int, dtype=torch.float64) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    estimator = ESTIMATORS[name]().to(dtype)
    leaves = case.leaves(samples, dtype)
    estimator.prepare(case.family(**leaves))
    estimator.requires_grad_(requires_grad=False)
    torch.autograd.backward(estimator(case.family(**leaves), case.cost(cost)).sum())
    return {leaf: p.grad for leaf, p in leaves.items()}


@pytest.mark.parametrize(("name", "case"), CASES)
def test_mean_is_the_gradient(name, case):
    for cost in COSTS:
        if not fits(name, case, cost):
            continue
        moments = relative_moments(exact(case, cost), estimates(name, case, cost, SAMPLES))
        implicit = case.family in (Gamma, Chi2, Beta) and name in ("Pathwise", "LAX")
        REPORT.unbiased("mean", f"{name}, {case}, {cost}", moments, slack=IMPLICIT if implicit else SLACK)


@pytest.mark.parametrize("name", ["LAX", "REINFORCE"])
def test_scores_are_unbiased_where_samples_round_to_the_bound(name):
    """They are drawn and scored in log space, where a sample next to 0 or 1 keeps its distance."""
    moments = relative_moments(exact(ROUNDED, "polynomial"), estimates(name, ROUNDED, "polynomial", SAMPLES))
    REPORT.unbiased("rounding", f"{name}, {ROUNDED}", moments, slack=IMPLICIT if name == "LAX" else SLACK)


def test_the_bound_covers_all_comparisons():
    assert REPORT.comparisons <= COMPARISONS
