"""What is measured of one candidate: figures of the whole gradient, and of each group of parameters."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["ALARM", "Figures", "Row"]

ALARM = 4.0
"""From this `bias_z` on an estimator counts as biased: correct ones exceed it about 3 times in 100,000."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    r"""How good estimates g of a gradient $\nabla$ are, a vector of many entries; not a number where unknown.

    Attributes:
        variance: $V = E|g - E g|^2$, the total over the entries.
        variance_error: Its standard error.
        squared_bias: $|E g - \nabla|^2$. Noise has been subtracted, so that it is right on average, and may be negative
            within its error.
        squared_bias_error: Its standard error.
        bias_z: How many standard errors the mean is from the reference, as the normal quantile that is exceeded as
            rarely by an unbiased estimator as the distance found: above `ALARM` (4) it is biased.
        mean_squared_error: $E|g - \nabla|^2$, variance and squared bias.
        signal_to_noise: $|E g| / \sqrt V$; infinite where there is no variance.
        cosine: Of the angle between $E g$ and $\nabla$.
    """

    variance: float = math.nan
    variance_error: float = math.nan
    squared_bias: float = math.nan
    squared_bias_error: float = math.nan
    bias_z: float = math.nan
    mean_squared_error: float = math.nan
    signal_to_noise: float = math.nan
    cosine: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Row(Figures):
    """One candidate; its own figures are totals over all parameters.

    Attributes:
        name: Class and the settings that differ from its defaults; where it takes not all places, those that it takes.
        current: Whether it is what the module has.
        claims_unbiased: Whether all estimators that are used say that they are unbiased.
        step_seconds: Median time of one loss and its gradient, with what the estimator does to learn.
        peak_bytes: Most memory of tensors alive at once in such a step, beyond what was alive before.
        evaluations: Declared evaluations of f and of its gradient in z, for an f without structure.
        work_variance: Variance times seconds: what it costs to bring the variance of an average down.
        draws: Estimates drawn.
        refused: In one line why there are no figures, or None.
        learning_steps: Steps that it had to learn, at these weights, before it was measured; 0 if it learns nothing.
        learning_curve: Pairs of a step and the variance of the estimates around it.
        groups: The same figures by group of parameters: top-level attributes of the module, and `logits/<path>` for
            what the estimator at `<path>` sends into the parameters of its q.
    """

    name: str
    current: bool = False
    claims_unbiased: bool | None = None
    step_seconds: float = math.nan
    peak_bytes: float = math.nan
    evaluations: tuple[int, int] | None = None
    work_variance: float = math.nan
    draws: int = 0
    refused: str | None = None
    learning_steps: int = 0
    learning_curve: list[tuple[int, float]] = field(default_factory=list)
    groups: dict[str, Figures] = field(default_factory=dict)

    @property
    def is_biased(self) -> bool:
        """Whether it says so itself, or its mean was found to be off."""
        return not self.claims_unbiased or self.bias_z > ALARM

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, with None for what is not a number."""
        plain: dict[str, Any] = without_nan(asdict(self))
        return plain


def without_nan(value: Any) -> Any:
    """Return plain values that JSON can hold: None for what is not a number, a string for what is infinite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, dict):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value
