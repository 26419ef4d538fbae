"""The conformance suite: everything that a gradient estimator's declarations promise."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lightning_estimators.testing.contract import (
    check_copies,
    check_evaluations,
    check_refusals,
    check_saturated,
    check_shapes,
)
from lightning_estimators.testing.gradients import check_batch_of_one, check_bias, check_reach
from lightning_estimators.testing.learning import check_surrogate_gradient, check_training, check_variance_gradient
from lightning_estimators.testing.statistics import Report
from lightning_estimators.testing.under_test import Factory

__all__ = ["CHECKS", "check_estimator"]

CHECKS: tuple[Callable[[Factory, Report], None], ...] = (
    check_shapes,
    check_refusals,
    check_evaluations,
    check_saturated,
    check_copies,
    check_reach,
    check_surrogate_gradient,
    check_variance_gradient,
    check_training,
    check_batch_of_one,
    check_bias,
)
"""All checks, cheapest first; each can be called alone as `check(factory, Report())`."""


def check_estimator(factory: Factory) -> Report:
    """Run every check that the declarations of an estimator promise; see the docstrings of `CHECKS` for what they do.

    Statistical checks compare 200 000 estimates with exact sums under one bound on |z|, `BOUND`, with fixed seeds. They
    take seconds if own networks are small: give yours few units here.

    Args:
        factory: Returns a new estimator at every call, without arguments. Own networks must take any number of input
            features (`nn.LazyLinear`), since every check has its own shapes, and be smooth if they enter the variance:
            with ReLU units its derivative is not exact.

    Returns:
        How many comparisons were made, and the largest |z|.

    Raises:
        AssertionError: A check failed; the message names it, the problem, the figure and the bound.
        ValueError: There is no problem for any of the families the estimator declares.

    Example:
        >>> from lightning_estimators.estimators import Enumeration
        >>> check_estimator(Enumeration).comparisons > 0
        True
    """
    report = Report()
    state = torch.get_rng_state()
    try:
        for check in CHECKS:
            check(factory, report)
    finally:
        torch.set_rng_state(state)
    return report
