"""Conformance suite: `check_estimator` tests a gradient estimator, such as your own, on exactly solvable problems."""

from lightning_estimators.testing.check import CHECKS, check_estimator
from lightning_estimators.testing.gradients import nested_moments
from lightning_estimators.testing.learning import total_variance
from lightning_estimators.testing.problems import ExactExpectation
from lightning_estimators.testing.registered import check_family
from lightning_estimators.testing.statistics import BOUND, COMPARISONS, FALSE_ALARM_RATE, Moments, Report

__all__ = [
    "BOUND",
    "CHECKS",
    "COMPARISONS",
    "FALSE_ALARM_RATE",
    "ExactExpectation",
    "Moments",
    "Report",
    "check_estimator",
    "check_family",
    "nested_moments",
    "total_variance",
]
