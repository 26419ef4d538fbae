"""Checks of coupled samples: they leave the mean of the gradient as it is, or are refused."""

from __future__ import annotations

from functools import partial

from torch.distributions import Bernoulli, OneHotCategorical

from lightning_estimators.estimators import GradientEstimator
from lightning_estimators.noise import Coupling
from lightning_estimators.testing.gradients import nested_moments
from lightning_estimators.testing.learning import check_variance_gradient
from lightning_estimators.testing.problems import ExactExpectation
from lightning_estimators.testing.statistics import Report, require
from lightning_estimators.testing.under_test import Factory, accepts, families

__all__ = ["check_coupling", "with_coupling"]

SAMPLES = 10_000
"""Samples per comparison: what leaves one out of samples that are not independent is off by much."""


def with_coupling(factory: Factory, coupling: Coupling, num_samples: int) -> GradientEstimator:
    """Return a new estimator with so many samples, coupled so."""
    estimator = factory()
    estimator.coupling = "independent"
    estimator.num_samples = num_samples
    estimator.coupling = coupling
    return estimator


def check_coupling(factory: Factory, report: Report) -> None:
    """Mean of value and gradient with antithetic pairs, and stratified triples, of samples, alone and nested.

    Where own parameters learn the variance, it is that of the average of coupled samples. Estimators that declare
    `needs_independent_samples` refuse; one that should, and does not, is biased. Families whose samples are no function
    of uniform noise are left out.
    """
    check = "coupling"
    settings: list[tuple[Coupling, int]] = [("antithetic", 1), ("stratified", 2)]
    for coupling, layers in settings:
        samples = 2 if coupling == "antithetic" else max(3, factory().min_samples)
        coupled = partial(with_coupling, factory, coupling, samples)
        try:
            coupled()
        except ValueError:
            continue
        name = type(factory()).__name__
        require(
            not factory().needs_independent_samples,
            check,
            name,
            f"coupling={coupling!r} is not refused, although `needs_independent_samples`",
        )
        check_variance_gradient(coupled, report)
        for family in families(factory):
            discrete = family in (Bernoulli, OneHotCategorical)
            depth = layers if discrete else 1
            problem = ExactExpectation(family, depth, variables=1 if depth == 2 and family is not Bernoulli else 2)
            q = problem.distribution(problem.parameters()["logits"])
            if accepts(coupled, q) and factory().is_unbiased(q):
                moments = nested_moments(problem, [coupled] * depth, samples=SAMPLES)
                report.unbiased(check, f"{problem}, {coupling}", moments)
