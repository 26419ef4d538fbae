"""float32: finite everywhere, and with the means of float64 up to its own rounding."""

import pytest
import torch

from lightning_estimators.testing import Report

from .oracle import COSTS, Case, exact, relative_moments
from .test_unbiased import CASES, estimates, fits

SAMPLES = 50_000
ROUNDING = 5e-3
"""Relative to the gradient, beside standard errors. A sign or a factor would be out by 1."""


@pytest.mark.parametrize(("name", "case"), CASES)
def test_float32(name, case: Case):
    for cost in COSTS:
        if not fits(name, case, cost):
            continue
        found = estimates(name, case, cost, SAMPLES, torch.float32)
        for parameter, gradient in found.items():
            assert gradient.dtype == torch.float32
            assert gradient.isfinite().all(), (cost, parameter)
        moments = relative_moments(exact(case, cost), found)
        Report().unbiased("float32", f"{name}, {case}, {cost}", moments, slack=ROUNDING)
