"""Statistical comparisons of estimates with exact numbers: one bound for all, from a stated rate of false alarms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist

import torch
from torch import Tensor

from lightning_estimators.moments import GradientMoments

__all__ = ["BOUND", "COMPARISONS", "FALSE_ALARM_RATE", "Moments", "Report", "largest_z", "require"]

FALSE_ALARM_RATE = 1e-3
"""The probability, if seeds were not fixed, that any of `COMPARISONS` comparisons fails for correct estimators."""

COMPARISONS = 20_000
"""How many comparisons this is for: more than are made of all estimators of the package, which a test counts."""

BOUND: float = NormalDist().inv_cdf(1 - FALSE_ALARM_RATE / (2 * COMPARISONS))
"""The bound on |z|, about 5.45: two-sided, with Bonferroni's correction for `COMPARISONS` comparisons."""


class Moments(GradientMoments):
    """Mean and standard error of the difference between independent estimates and the exact numbers.

    Args:
        exact: The exact numbers by name.
    """

    def __init__(self, exact: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.exact = dict(exact)

    def add(self, estimates: Mapping[str, Tensor]) -> None:
        """Include estimates by name, of shape `(count,)` + the shape of the exact number."""
        self.update({name: estimate - self.exact[name] for name, estimate in estimates.items()})

    def error(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the mean error and its standard error; the latter is 0 for a single estimate."""
        mean = self.mean(name)
        return mean, self.standard_error(name) if self.count(name) > 1 else torch.zeros_like(mean)


@dataclass
class Report:
    """What the checks of one estimator found.

    Attributes:
        comparisons: How many statistical comparisons were made.
        largest_z: The largest |z| in each check, by the name of the check.
    """

    comparisons: int = 0
    largest_z: dict[str, float] = field(default_factory=dict)

    def unbiased(self, check: str, problem: str, moments: Moments, slack: float = 1e-9) -> None:
        """Raise unless every mean is within `BOUND` standard errors of the exact number.

        Args:
            check: Name of the check, for the message.
            problem: Name of the problem, for the message.
            moments: The estimates.
            slack: Allowance for rounding on top, relative to 1 + the absolute value of the exact number.

        Raises:
            AssertionError: One of them is not.
        """
        for name, exact in moments.exact.items():
            mean, se = moments.error(name)
            z = mean.abs() / (se + slack * (1 + exact.abs()) / BOUND)
            self.comparisons += z.numel()
            self.largest_z[check] = max(self.largest_z.get(check, 0.0), z.max().item())
            worst = z.argmax()
            require(
                bool((z <= BOUND).all()),
                check,
                problem,
                f"the mean of {moments.count(name)} estimates of {name} is off by {mean.flatten()[worst]:.3g} from "
                f"{exact.flatten()[worst]:.3g}, |z| = {z.max():.2f} > {BOUND:.2f}",
            )

    def biased(self, check: str, problem: str, moments: Moments) -> None:
        """Raise unless some mean is further than `BOUND` standard errors from the exact number.

        Raises:
            AssertionError: None of them is, so the estimator, which is declared biased, shows no bias.
        """
        largest, count = largest_z(moments), max(moments.count(name) for name in moments.exact)
        require(
            largest > BOUND,
            check,
            problem,
            f"is_unbiased(q) is False, but {count} estimates show none, |z| = {largest:.2f} <= {BOUND:.2f}",
        )


def largest_z(moments: Moments) -> float:
    """Return the largest |z| of the differences between means and exact numbers."""
    errors = [moments.error(name) for name in moments.exact]
    return max((mean.abs() / se.clamp_min(1e-12)).max().item() for mean, se in errors)


def require(condition: bool, check: str, problem: str, message: str) -> None:  # noqa: FBT001
    """Raise an AssertionError that names the check and the problem, unless the condition is true."""
    if not condition:
        raise AssertionError(f"{check}: {problem}: {message}")
