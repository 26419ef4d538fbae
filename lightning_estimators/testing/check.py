"""The conformance suite for gradient estimators: runs all checks and collects what they find."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from lightning_estimators.testing.contract import (
    check_copies,
    check_evaluations,
    check_noise,
    check_norms,
    check_refusals,
    check_saturated,
    check_shapes,
)
from lightning_estimators.testing.coupling import check_coupling
from lightning_estimators.testing.gradients import check_batch_of_one, check_bias, check_reach
from lightning_estimators.testing.learning import check_surrogate_gradient, check_training, check_variance_gradient
from lightning_estimators.testing.statistics import Report
from lightning_estimators.testing.under_test import Factory, families

__all__ = ["CHECKS", "check_estimator"]

_PACKAGE = Path(__file__).resolve().parents[1]

CHECKS: tuple[Callable[[Factory, Report], None], ...] = (
    check_shapes,
    check_refusals,
    check_evaluations,
    check_noise,
    check_norms,
    check_saturated,
    check_copies,
    check_reach,
    check_surrogate_gradient,
    check_variance_gradient,
    check_training,
    check_batch_of_one,
    check_coupling,
    check_bias,
)
"""All checks, cheapest first; each can be called alone as `check(factory, Report())`."""


def check_estimator(factory: Factory, *, stop_at_first: bool = False) -> Report:
    """Check that an estimator does what it declares: that it is unbiased, how often it evaluates f, and so on.

    The docstring of each function in `CHECKS` says what it checks. All checks are run, and all failures are reported
    at the end, one line for each; if the estimator raised an error, the line says where.

    Statistical checks compare the mean of 200,000 estimates, drawn with fixed seeds, with the exact gradient. All of
    them use the same bound on |z|, the difference divided by its standard error (`BOUND`). They take seconds if the
    networks that the estimator trains are small, so give yours few units here.

    Args:
        factory: A function without arguments that returns a new estimator at every call. Networks inside the estimator
            must accept any number of input features (`nn.LazyLinear`), since the checks use different shapes. If they
            are trained to lower the variance, they must be smooth: with ReLU units, the derivative of the variance that
            is compared with finite differences is not exact.
        stop_at_first: Whether to raise as soon as a check fails.

    Returns:
        How many statistical comparisons were made, and the largest |z| in each check.

    Raises:
        AssertionError: Checks failed; the message names the check, the problem, the figure and the bound.
        ValueError: The suite has no problem for any of the families that the estimator declares.

    Example:
        >>> from lightning_estimators.estimators import Enumeration
        >>> check_estimator(Enumeration).comparisons > 0
        True
    """
    families(factory)  # raises where there is no problem
    report, failures = Report(), list[str]()
    state = torch.get_rng_state()
    try:
        for check in CHECKS:
            try:
                check(factory, report)
            except AssertionError as error:
                failures.append(str(error))
            except Exception as error:
                failures.append(_told(check.__name__.removeprefix("check_").replace("_", " "), error))
            if failures and stop_at_first:
                break
    finally:
        torch.set_rng_state(state)
    if failures:
        raise AssertionError("\n".join(failures))
    return report


def _told(check: str, error: Exception) -> str:
    """Return a line that says that the estimator raised an error, and where."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _PACKAGE not in Path(f.filename).parents]
    last = next((f for f in reversed(frames) if "torch" not in Path(f.filename).parts), None)
    where = "" if last is None else f", in {last.filename}, line {last.lineno}: {last.line}"
    return f"{check}: the estimator raised {type(error).__name__}: {error}{where}"
