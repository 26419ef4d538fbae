"""What tables and sentences say of runs that differ in their seed."""

from __future__ import annotations

import math

from benchmarks.experiment import Curve

__all__ = ["late_log_mean", "late_mean"]


def late_mean(curve: Curve) -> float:
    """Return the mean of the last tenth of a curve."""
    values = _late(curve)
    return math.fsum(values) / len(values)


def late_log_mean(curve: Curve) -> float:
    """Return the log of the mean of what the last tenth of a curve has the logs of."""
    values = _late(curve)
    largest = max(values)
    if largest == -math.inf:
        return largest
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values) / len(values))


def _late(curve: Curve) -> list[float]:
    return curve["value"][-max(1, len(curve["value"]) // 10) :]
