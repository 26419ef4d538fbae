"""Checks of coupled samples (antithetic or stratified): the gradient stays unbiased, or the estimator refuses them."""

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
"""Samples for each comparison. Few are enough: leave-one-out with coupled samples, for example, is off by much."""


def with_coupling(factory: Factory, coupling: Coupling, num_samples: int) -> GradientEstimator:
    """Return a new estimator with `num_samples` samples and the given coupling."""
    estimator = factory()
    estimator.coupling = "independent"
    estimator.num_samples = num_samples
    estimator.coupling = coupling
    return estimator


def check_coupling(factory: Factory, report: Report) -> None:
    """With antithetic pairs and with stratified triples of samples, value and gradient keep their mean.

    Checked for one layer and for two nested ones. If the estimator's own parameters are trained to lower the variance,
    it must be the variance of the average of the coupled samples. Estimators that declare `needs_independent_samples`
    must refuse coupled samples; one that should declare it, but does not, is found to be biased. Families whose samples
    are no function of uniform noise are left out.
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
