"""What means are compared with: the exact gradient, or the pooled means of estimators that are known to be unbiased."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from lightning_estimators.baselines import Baseline
from lightning_estimators.comparison.exact import ClosedForm
from lightning_estimators.comparison.figures import Mean, figures, pooled
from lightning_estimators.comparison.measurement import Measured
from lightning_estimators.comparison.rows import ALARM
from lightning_estimators.estimators import Enumeration, GradientEstimator

__all__ = ["Reference", "References"]

_MOST_NAMES = 5  # that are printed


@dataclass(frozen=True)
class Reference:
    """What the means of all candidates are compared with.

    Attributes:
        kind: "exact", "pooled" or "none".
        estimators: Whose means it is.
        norm: Euclidean norm of the whole gradient.
        error: Standard error of the reference, the root of its total variance; 0 if it is exact.
        left_out: Estimators that should have been among them, and are not, since their means contradict the others.
    """

    kind: str
    estimators: list[str]
    norm: float
    error: float
    left_out: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        if self.kind == "none":
            return "none: there is no estimator that is known to be unbiased here"
        more = len(self.estimators) - _MOST_NAMES
        said = f"{self.kind}: {', '.join(self.estimators[:_MOST_NAMES])}{f' and {more} more' if more > 0 else ''}"
        if self.kind == "pooled":
            said += f"; off by {self.error:.2g} of a gradient of norm {self.norm:.3g}"
        if self.left_out:
            said += f"; left out, since their means contradict the others: {', '.join(self.left_out)}"
        return said


class References:
    """The references of all candidates: of its own class none is in what a candidate is compared with.

    An estimator that is wrong, for once or always, would make all others look biased. So where there are three classes
    or more, the one that contradicts the rest most is left out, and so on until none does. The wrong one is found: it
    moves the reference of every other by a part of its bias only, and its own by none, and no single one is known
    better than the rest together.

    Args:
        measured: What may serve. An exact one is enough; otherwise all of this package that claim to be unbiased, each
            weighted by the precision of its mean.
        names: Of groups and joint vectors.
        rounding: Relative error of computing a gradient.
    """

    def __init__(self, measured: Sequence[Measured], names: Sequence[str], rounding: float) -> None:
        self.names, self.rounding = list(names), rounding
        usable = [one for one in measured if _is_trusted(one)]
        self.exact = [one for one in usable if _covers_all(one)][:1]
        self.left_out: list[Measured] = []
        self.pool = self.exact or self._in_agreement(usable)
        if not self.exact:
            self.exact = [one for one in self.pool if one.is_exact][:1]
            self.pool = self.exact or self.pool

    def of(self, one: Measured | None = None) -> Mean | None:
        """Return the reference of a candidate, or of them all; None if there is none."""
        return self._mean(self.pool if self.exact or one is None else _of_other_classes(one, self.pool))

    def summary(self) -> Reference:
        """Return what is told of it."""
        mean = self.of()
        if mean is None:
            return Reference("none", [], math.nan, math.nan)
        square = sum(float(mean.mean[part].square().sum()) for part in self.pool[0].moments.parts("total"))
        noise = mean.noise["total"]
        return Reference(
            kind="exact" if self.exact else "pooled",
            estimators=list(dict.fromkeys(one.candidate.name for one in self.pool)),
            norm=math.sqrt(max(0.0, square - noise)),
            error=0.0 if self.exact else math.sqrt(noise),
            left_out=[one.candidate.name for one in self.left_out],
        )

    def _in_agreement(self, usable: Sequence[Measured]) -> list[Measured]:
        pool = list(usable)
        while len({frozenset(one.candidate.classes()) for one in pool}) > 2:
            worst = max(pool, key=lambda one: self._contradiction(one, pool))
            if self._contradiction(worst, pool) <= ALARM:
                break
            pool.remove(worst)
            self.left_out.append(worst)
        return pool

    def _contradiction(self, one: Measured, pool: Sequence[Measured]) -> float:
        others = self._mean(_of_other_classes(one, pool))
        return -math.inf if others is None else figures(one, "total", others, self.rounding).bias_z

    def _mean(self, pool: Sequence[Measured]) -> Mean | None:
        return pooled(pool, self.names) if pool else None


def _of_other_classes(one: Measured, pool: Sequence[Measured]) -> list[Measured]:
    return [other for other in pool if not one.candidate.classes() & other.candidate.classes()]


def _covers_all(one: Measured) -> bool:
    """Whether it is exact by what it does, and not only as far as was seen."""
    return one.is_exact and all(isinstance(e, Enumeration | ClosedForm) for e in one.candidate.estimators.values())


def _is_trusted(one: Measured) -> bool:
    """Whether its mean is the gradient: what is of this package is held to that by tests, and nothing else is."""
    candidate = one.candidate
    if candidate.refused is not None or one.count < 3 or not candidate.claims_unbiased:
        return False
    parts = [part for estimator in candidate.estimators.values() for part in estimator.modules()]
    deciding = [part for part in parts if isinstance(part, GradientEstimator | Baseline)]
    return all(type(part).__module__.startswith("lightning_estimators.") for part in deciding)
