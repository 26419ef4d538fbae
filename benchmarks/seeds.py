"""Figures over seeds, and when two of them differ."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

__all__ = ["Difference", "Seeds"]


@dataclass(frozen=True)
class Seeds:
    """One figure, once for each seed.

    Attributes:
        values: At least one.
    """

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        """How many seeds."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean over them."""
        return sum(self.values) / self.n

    @property
    def std(self) -> float | None:
        """Standard deviation over them (of a sample); None for one seed."""
        if self.n == 1:
            return None
        return statistics.stdev(self.values) if all(map(math.isfinite, self.values)) else math.nan

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.std is None else f" ± {self.std:.2f}")


ONE_SEED = 0.25
"""What single runs must differ by, in nats: seeds differ by .04 to .84 in the second paper's Table 1."""


@dataclass(frozen=True)
class Difference:
    """The difference of two means, against its standard error.

    Attributes:
        one: Minuend.
        other: What is taken from it.
    """

    one: Seeds
    other: Seeds

    @property
    def value(self) -> float:
        """Mean of the one less mean of the other."""
        return self.one.mean - self.other.mean

    @property
    def error(self) -> float | None:
        """Its standard error over seeds; None if either has one seed."""
        if self.one.std is None or self.other.std is None:
            return None
        return math.sqrt(self.one.std**2 / self.one.n + self.other.std**2 / self.other.n)

    @property
    def sign(self) -> int:
        """1 if the one is higher, -1 if lower, 0 for a tie: less than 2 standard errors, or figures not finite.

        Where one of them is of one seed, less than `ONE_SEED` is a tie, and less than 2 standard errors if its seeds
        spread like those of the other.
        """
        spread = self.one.std or self.other.std or 0.0
        single = max(ONE_SEED, 2 * spread * math.sqrt(1 / self.one.n + 1 / self.other.n))
        least = single if self.error is None else 2 * self.error
        if not math.isfinite(self.value) or abs(self.value) < least:
            return 0
        return (self.value > 0) - (self.value < 0)

    @property
    def doubt(self) -> str:
        """Standard error, or that there is none."""
        if not math.isfinite(self.value):
            return "not finite"
        return "one seed" if self.error is None else f"standard error {self.error:.2f}"

    def __str__(self) -> str:
        words = {1: "higher by", -1: "lower by", 0: "a tie, apart by"}
        apart = f"{abs(self.value):.2f}" if abs(self.value) >= 0.005 else f"{abs(self.value):.1g}"
        return f"{self.one.mean:.2f} against {self.other.mean:.2f}, {words[self.sign]} {apart} ({self.doubt})"
