"""Every estimator through the shipped conformance suite; every pair of unbiased ones nested in one another."""

import inspect
from itertools import product

import pytest
import torch
from torch.distributions import Bernoulli, Gamma, OneHotCategorical

from lightning_estimators import baselines, estimators
from lightning_estimators.estimators import REINFORCE
from lightning_estimators.estimators.combined import averages_costs
from lightning_estimators.testing import CHECKS, COMPARISONS, ExactExpectation, Report, nested_moments
from lightning_estimators.testing.gradients import SAMPLES
from lightning_estimators.testing.under_test import families, one_layer

from .cases import CASES

REPORT = Report()
"""Of all comparisons of this file: they share one rate of false alarms."""

NESTED = [
    "Enumeration",
    "REINFORCE",
    "REINFORCE/learned",
    "REINFORCE/leave_one_out/2",
    "REBAR",
    "RELAX",
    "RelaxedREBAR",
    "StochasticBackprop",
]
"""One case of every way to be unbiased: each is nested in each."""

NESTED_IN_SOME = [
    "DisARM",
    "ARMS",
    "UGC",
    "UnorderedSet/2",
    "MuProp",
    "MuProp/leave_one_out/3",
    "DoubleCV",
    "RODEO",
]
"""Cases that treat what is nested as one of `NESTED` does: nested in themselves, in and around two that do not."""

NESTED_CATEGORICALS = ["CARMS"]
"""The same for estimators of categorical variables alone."""

NESTED_INSIDE = ["VIMCO/2"]
"""Cases of another objective than the mean of the costs, which take no estimates for costs: nested in others only."""

AROUND = ("REBAR", "StochasticBackprop")
"""What evaluates what is nested in it between its values, or at many of them, under the same noise."""

PAIRS = [(outer, inner) for outer in NESTED for inner in NESTED]
PAIRS += [
    pair for case in NESTED_IN_SOME for pair in ((case, case), *product([case], AROUND), *product(AROUND, [case]))
]
PAIRS += list(product(AROUND, NESTED_INSIDE))


def concrete_classes(package):
    return {name for name in package.__all__ if inspect.isclass(c := getattr(package, name)) and not is_abstract(c)}


def is_abstract(c):
    return inspect.isabstract(c) or not hasattr(c, "forward")


def test_every_public_estimator_has_a_case():
    missing = concrete_classes(estimators) - {type(factory()).__name__ for factory in CASES.values()}
    assert not missing, f"add a case to tests/estimators/cases.py for {sorted(missing)}"


def test_every_public_baseline_has_a_case():
    used = {type(e.baseline).__name__ for e in (factory() for factory in CASES.values()) if isinstance(e, REINFORCE)}
    missing = concrete_classes(baselines) - used
    assert not missing, f"add a case to tests/estimators/cases.py for {sorted(missing)}"


CONTINUOUS = ["REINFORCE", "Pathwise", "LAX", "GeneralizedReparameterization", "StochasticBackprop"]
"""The same for continuous families."""


def test_every_unbiased_estimator_is_nested():
    unbiased = {
        type(factory()).__name__
        for factory in CASES.values()
        if any(factory().is_unbiased(one_layer(family, torch.zeros(1, 2, 3))) for family in families(factory))
    }
    assert unbiased == {
        type(CASES[name]()).__name__
        for name in NESTED + NESTED_IN_SOME + NESTED_INSIDE + NESTED_CATEGORICALS + CONTINUOUS
    }
    continuous = {name for name in CASES if Gamma in families(CASES[name]) and averages_costs(CASES[name]())}
    assert {type(CASES[name]()).__name__ for name in continuous} == {type(CASES[n]()).__name__ for n in CONTINUOUS}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES)
def test_conformance(case, check):
    check(CASES[case], REPORT)


@pytest.mark.parametrize(("outer", "inner"), PAIRS)
def test_nested_pairs_are_unbiased(outer, inner):
    problem = ExactExpectation(Bernoulli, layers=2)
    samples = SAMPLES if {outer, inner} <= set(NESTED) else SAMPLES // 2
    REPORT.unbiased("pairs", f"{inner} in {outer}", nested_moments(problem, [CASES[outer], CASES[inner]], samples))


@pytest.mark.parametrize(
    ("outer", "inner"), [*product(NESTED_CATEGORICALS, AROUND), *product(AROUND, NESTED_CATEGORICALS)]
)
def test_nested_pairs_of_categoricals_are_unbiased(outer, inner):
    problem = ExactExpectation(OneHotCategorical, layers=2, variables=1)
    moments = nested_moments(problem, [CASES[outer], CASES[inner]], SAMPLES // 2)
    REPORT.unbiased("pairs", f"{inner} in {outer}", moments)


@pytest.mark.parametrize("inner", CONTINUOUS)
@pytest.mark.parametrize("outer", CONTINUOUS)
def test_nested_pairs_of_gammas_are_unbiased(outer, inner):
    problem = ExactExpectation(Gamma, layers=2, variables=1)
    moments = nested_moments(problem, [CASES[outer], CASES[inner]], samples=50_000)
    REPORT.unbiased("pairs", f"{inner} in {outer}", moments, slack=2e-3)  # torch's implicit derivatives are fits


def test_the_bound_covers_all_comparisons():
    assert REPORT.comparisons <= COMPARISONS
