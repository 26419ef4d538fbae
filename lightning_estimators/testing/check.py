"""The conformance suite: everything that a gradient estimator's declarations promise."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from lightning_estimators.testing.contract import (
    check_copies,
    check_evaluations,
    check_noise,
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
    """Run every check that the declarations of an estimator promise; see the docstrings of `CHECKS` for what they do.

    All checks are run, and what failed is told together: one line for each check, and under it where an error came from
    that the estimator raised.

    Statistical checks compare 200 000 estimates with exact sums under one bound on |z|, `BOUND`, with fixed seeds. They
    take seconds if own networks are small: give yours few units here.

    Args:
        factory: Returns a new estimator at every call, without arguments. Own networks must take any number of input
            features (`nn.LazyLinear`), since every check has its own shapes, and be smooth if they enter the variance:
            with ReLU units its derivative is not exact.
        stop_at_first: Whether to raise as soon as a check fails.

    Returns:
        How many comparisons were made, and the largest |z|.

    Raises:
        AssertionError: Checks failed; the message names each, the problem, the figure and the bound.
        ValueError: There is no problem for any of the families the estimator declares.

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
    """Say that an estimator raised an error, and in which line."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _PACKAGE not in Path(f.filename).parents]
    last = next((f for f in reversed(frames) if "torch" not in Path(f.filename).parts), None)
    where = "" if last is None else f", in {last.filename}, line {last.lineno}: {last.line}"
    return f"{check}: the estimator raised {type(error).__name__}: {error}{where}"
