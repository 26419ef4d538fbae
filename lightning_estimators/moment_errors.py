"""Mean and variance of gradient estimates, with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_estimators.moments import GradientMoments

__all__ = ["MomentsWithErrors"]

_MOST_ROWS, _MOST_ENTRIES = 64, 2**22  # of the differences that are kept, of all gradients together


class MomentsWithErrors(GradientMoments):
    r"""Mean and total variance of independent estimates, with standard errors of both; one estimate at a time.

    Let $\Sigma$ be the covariance matrix of an estimate, which is too large to be stored.

    - The total variance is $V = \operatorname{tr} \Sigma$. The k-th estimate adds
      $\frac{k-1}{k} |g_k - \bar g_{k-1}|^2$ to the squared deviations. The mean of each such number is V, so V is
      estimated by their average, and its standard error by their spread.
    - $\operatorname{tr} \Sigma^2$ determines the error of $|\bar g|^2$. The differences
      $d = (g_k - g_{k+1}) / \sqrt 2$ of disjoint pairs of estimates are independent and have covariance $\Sigma$, so
      the mean of $(d_i \cdot d_j)^2$ is that trace.
    - $b^T \Sigma b$, the variance along a direction b, is the mean of $(b \cdot d_i)^2$ over the last differences.

    Memory: two gradients, and the last 64 differences, or as many as have four million entries.

    Args:
        joint: Names for several gradients that are also treated as one vector, such as
            `{"total": ["encoder", "decoder"]}`.

    Source: Welford (1962), *Note on a method for calculating corrected sums of squares and products*,
    https://doi.org/10.1080/00401706.1962.10490022, for the increments.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> moments = MomentsWithErrors()
        >>> for _ in range(1000):
        ...     moments.add({"g": torch.randn(10)})
        >>> round(moments.total_variance("g"), 1), round(moments.variance_error("g"), 2)  # 10, sqrt(2 * 10 / 1000)
        (10.1, 0.14)
        >>> round(moments.squared_trace("g"))
        10
        >>> round(moments.variance_along("g", {"g": torch.ones(10)}))  # 10, from 64 differences: known to 18 %
        9
    """

    def __init__(self, joint: Mapping[str, Sequence[str]] | None = None) -> None:
        super().__init__(per_entry=False)
        self._joint = {name: list(parts) for name, parts in (joint or {}).items()}
        self._increments: dict[str, tuple[int, float, float]] = {}  # count, mean, sum of squared deviations
        self._products: dict[str, tuple[int, float]] = {}  # count, sum of squares
        self._first: dict[str, Tensor] | None = None
        self._differences: dict[str, Tensor] = {}  # one in each row
        self._rows = self._pairs = 0

    def parts(self, name: str) -> list[str]:
        """Return the names of the gradients that make up a joint vector, or just the name if it is a gradient's."""
        return self._joint.get(name, [name])

    def add(self, estimate: Mapping[str, Tensor]) -> None:
        """Include one estimate of each gradient; it is detached."""
        estimate = {name: g.detach().to(torch.promote_types(g.dtype, torch.float32)) for name, g in estimate.items()}
        added = {name: self._add(name, 1, g, g.new_zeros(())) for name, g in estimate.items()}
        increments = {name: increment for name, increment in added.items() if increment is not None}
        for name, increment in _numbers(self._with_joint(increments)).items():
            count, mean, squares = self._increments.get(name, (0, 0.0, 0.0))
            shift = increment - mean
            mean += shift / (count + 1)
            self._increments[name] = (count + 1, mean, squares + shift * (increment - mean))
        if self._first is None:
            self._first = estimate
            return
        first, self._first = self._first, None
        self._add_difference({n: (g - first[n]).flatten() * math.sqrt(0.5) for n, g in estimate.items() if n in first})

    def total_variance(self, name: str) -> float:
        """Return the sum of the variances of the entries; NaN for fewer than two estimates."""
        return self._increments[name][1] if name in self._increments else math.nan

    def variance_error(self, name: str) -> float:
        """Return the standard error of `total_variance`; NaN for fewer than three estimates."""
        count, _, squares = self._increments.get(name, (0, 0.0, 0.0))
        return math.sqrt(squares / (count - 1) / count) if count > 1 else math.nan

    def squared_trace(self, name: str) -> float:
        r"""Return $\operatorname{tr} \Sigma^2$; for fewer than four estimates $V^2$, which it cannot exceed."""
        largest = self.total_variance(name) ** 2
        count, total = self._products.get(name, (0, 0.0))
        return min(total / count, largest) if count else largest

    def variance_along(self, name: str, direction: Mapping[str, Tensor]) -> float:
        r"""Return $b^T \Sigma b$; for fewer than eight estimates $|b|^2 V$, which it cannot exceed.

        Args:
            name: The name of a gradient, or of several that are joined to one vector.
            direction: b, as a tensor for each gradient that makes up the vector.
        """
        parts = self.parts(name)
        if not self.degrees_of_freedom or not all(part in self._differences for part in parts):
            return sum(float(direction[part].square().sum()) for part in parts) * self.total_variance(name)
        dots = [self._differences[part][: self._rows] @ direction[part].flatten() for part in parts]
        return float(sum(dots, start=torch.zeros_like(dots[0])).double().square().mean())

    @property
    def degrees_of_freedom(self) -> int:
        """Of `variance_along`: how many squares it is the mean of; 0 where it is a bound."""
        return self._rows if self._rows >= 4 else 0

    def _add_difference(self, difference: Mapping[str, Tensor]) -> None:
        if not self._differences:
            entries = sum(d.numel() for d in difference.values())
            most = min(_MOST_ROWS, max(2, _MOST_ENTRIES // max(1, entries)))
            self._differences = {name: d.new_zeros(most, d.numel()) for name, d in difference.items()}
        kept = {name: rows for name, rows in self._differences.items() if name in difference}
        dots = {name: (rows[: self._rows] @ difference[name]).double() for name, rows in kept.items()}
        squares = {name: dot.square().sum() for name, dot in self._with_joint(dots).items()}
        for name, square in _numbers(squares if self._rows else {}).items():
            count, total = self._products.get(name, (0, 0.0))
            self._products[name] = (count + self._rows, total + square)
        for name, rows in kept.items():
            rows[self._pairs % len(rows)] = difference[name]
        self._pairs += 1
        self._rows = min(self._pairs, min(len(rows) for rows in self._differences.values()))

    def _with_joint(self, figures: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return figures, and their sums for the joint vectors."""
        joint = {}
        for name, parts in self._joint.items():
            found = [figures[part] for part in parts if part in figures]
            if found:
                joint[name] = torch.stack(found).sum(0)
        return dict(figures) | joint


def _numbers(figures: Mapping[str, Tensor]) -> dict[str, float]:
    """Convert 0-d tensors to numbers, by one transfer from the device."""
    if not figures:
        return {}
    values = torch.stack([figure.double() for figure in figures.values()]).tolist()
    return dict(zip(figures, values, strict=True))
