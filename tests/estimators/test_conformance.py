"""Every estimator through the shipped conformance suite; every pair of unbiased ones nested in one another."""

import inspect

import pytest
from rules.test_unbiased import ESTIMATORS as CONTINUOUS_CASES
from torch.distributions import Bernoulli

from lightning_estimators import baselines, estimators
from lightning_estimators.estimators import REINFORCE
from lightning_estimators.testing import CHECKS, COMPARISONS, Problem, Report, nested_moments
from lightning_estimators.testing.subject import families

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
"""One case of every way to be unbiased."""


def concrete_classes(package):
    return {name for name in package.__all__ if inspect.isclass(c := getattr(package, name)) and not is_abstract(c)}


def is_abstract(c):
    return inspect.isabstract(c) or not hasattr(c, "forward")


def test_every_public_estimator_has_a_case():
    """Those for continuous families only have theirs where quadrature is the oracle."""
    discrete = {type(factory()).__name__ for factory in CASES.values()}
    continuous = {type(factory()).__name__ for factory in CONTINUOUS_CASES.values()}
    missing = concrete_classes(estimators) - discrete - continuous
    assert not missing, f"add a case to tests/estimators/cases.py for {sorted(missing)}"
    for name in continuous - discrete:
        with pytest.raises(ValueError, match="of which the estimator takes none"):
            families(getattr(estimators, name))


def test_every_public_baseline_has_a_case():
    used = {type(e.baseline).__name__ for e in (factory() for factory in CASES.values()) if isinstance(e, REINFORCE)}
    missing = concrete_classes(baselines) - used
    assert not missing, f"add a case to tests/estimators/cases.py for {sorted(missing)}"


def test_every_unbiased_estimator_is_nested():
    unbiased = {type(e).__name__ for e in (factory() for factory in CASES.values()) if e.unbiased}
    assert unbiased == {type(CASES[name]()).__name__ for name in NESTED}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES)
def test_conformance(case, check):
    check(CASES[case], REPORT)


@pytest.mark.parametrize("inner", NESTED)
@pytest.mark.parametrize("outer", NESTED)
def test_nested_pairs_are_unbiased(outer, inner):
    problem = Problem(Bernoulli, layers=2)
    REPORT.unbiased("pairs", f"{inner} in {outer}", nested_moments(problem, [CASES[outer], CASES[inner]]))


def test_the_bound_covers_all_comparisons():
    assert REPORT.comparisons <= COMPARISONS
