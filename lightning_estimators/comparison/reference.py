"""What means are compared with: the exact gradient, or the pooled means of estimators that are known to be unbiased."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_estimators.comparison.candidates import Place
from lightning_estimators.comparison.measurement import Measured
from lightning_estimators.comparison.rows import Figures

__all__ = ["Mean", "Reference", "References", "figures"]


@dataclass(frozen=True)
class Mean:
    r"""An estimate of a gradient, and its noise; S is its covariance.

    Attributes:
        mean: By group.
        noise: $\operatorname{tr} S$, by group or joint name.
        noise_error: Its standard error.
        root: A bound of $\sqrt{\operatorname{tr} S^2}$.
    """

    mean: dict[str, Tensor]
    noise: dict[str, float]
    noise_error: dict[str, float]
    root: dict[str, float]


@dataclass(frozen=True)
class Reference:
    """What the means of all candidates are compared with.

    Attributes:
        kind: "exact", "pooled" or "none".
        estimators: Whose means it is.
        norm: Euclidean norm of the whole gradient.
        error: Standard error of the reference, the root of its total variance; 0 if it is exact.
    """

    kind: str
    estimators: list[str]
    norm: float
    error: float

    def __str__(self) -> str:
        if self.kind == "none":
            return "none: there is no estimator that is known to be unbiased here"
        of = f"{self.kind}: {', '.join(self.estimators)}"
        return of if self.kind == "exact" else f"{of}; off by {self.error:.2g} of a gradient of norm {self.norm:.3g}"


class References:
    """The references of all candidates: of its own class none is in what a candidate is compared with.

    Args:
        measured: What may serve. An exact one is enough; otherwise all of this package that claim to be unbiased, each
            weighted by the precision of its mean.
        places: For the claims.
        names: Of groups and joint vectors.
    """

    def __init__(self, measured: Sequence[Measured], places: Mapping[str, Place], names: Sequence[str]) -> None:
        self.names = list(names)
        usable = [one for one in measured if _is_trusted(one, places)]
        exact = [one for one in usable if one.is_exact]
        self.exact = exact[:1]
        self.pool = self.exact or usable

    def of(self, one: Measured | None = None) -> Mean | None:
        """Return the reference of a candidate, or of them all; None if there is none."""
        if self.exact:
            return _pooled(self.exact, self.names)
        others = [other for other in self.pool if one is None or not _share_a_class(one, other)]
        return _pooled(others, self.names) if others else None

    def summary(self) -> Reference:
        """Return what is told of it."""
        mean = self.of()
        if mean is None:
            return Reference("none", [], math.nan, math.nan)
        names = list(dict.fromkeys(one.candidate.name for one in self.pool))
        square = sum(float(mean.mean[part].square().sum()) for part in self.pool[0].moments.parts("total"))
        noise = mean.noise["total"]
        error = 0.0 if self.exact else math.sqrt(noise)
        return Reference("exact" if self.exact else "pooled", names, math.sqrt(max(0.0, square - noise)), error)


def _is_trusted(one: Measured, places: Mapping[str, Place]) -> bool:
    """Whether its mean is the gradient: estimators of this package are held to that by tests, others are not."""
    candidate = one.candidate
    if candidate.refused is not None or one.count < 3 or not candidate.claims_unbiased(places):
        return False
    return all(type(e).__module__.startswith("lightning_estimators.") for e in candidate.estimators.values())


def _share_a_class(one: Measured, other: Measured) -> bool:
    return bool(one.candidate.classes() & other.candidate.classes())


def _pooled(measured: Sequence[Measured], names: Sequence[str]) -> Mean:
    """Return the mean of means, each weighted by its precision."""
    precisions = [one.count / max(one.moments.total_variance("total"), 1e-300) for one in measured]
    weights = [precision / sum(precisions) for precision in precisions]
    groups = list(measured[0].moments)
    mean = {
        name: sum(
            (w * one.moments.mean(name) for w, one in zip(weights, measured, strict=True)),
            start=0.0 * measured[0].moments.mean(name),
        )
        for name in groups
        if all(name in set(one.moments) for one in measured)
    }
    noise, error, root = {}, {}, {}
    for name in names:
        noise[name] = sum(
            w**2 * one.moments.total_variance(name) / one.count for w, one in zip(weights, measured, strict=True)
        )
        error[name] = math.sqrt(
            sum(
                (w**2 * one.moments.variance_error(name) / one.count) ** 2
                for w, one in zip(weights, measured, strict=True)
            )
        )
        root[name] = sum(
            w**2 * math.sqrt(one.moments.squared_trace(name)) / one.count
            for w, one in zip(weights, measured, strict=True)
        )
    return Mean(mean, noise, error, root)


def figures(one: Measured, name: str, reference: Mean | None, rounding: float) -> Figures:
    """Return the figures of a candidate, for one group or for a joint vector.

    Args:
        one: The candidate.
        name: Of the group.
        reference: The gradient, or an estimate of it that is independent of the candidate.
        rounding: Relative error of computing a gradient.
    """
    moments, count, parts = one.moments, one.count, one.moments.parts(name)
    variance, variance_error = moments.total_variance(name), moments.variance_error(name)
    mean = {part: moments.mean(part) for part in parts}
    signal = max(0.0, _dot(mean, mean) - variance / count)
    known = {
        "variance": variance,
        "variance_error": variance_error,
        "signal_to_noise": math.sqrt(signal / variance) if variance > 0 else (math.inf if signal > 0 else 0.0),
    }
    if reference is None or not all(part in reference.mean for part in parts):
        return Figures(**known)
    target = {part: reference.mean[part] for part in parts}
    off = {part: mean[part] - target[part] for part in parts}
    noise = variance / count + reference.noise[name]
    distance, target_square = _dot(off, off), _dot(target, target)
    squared_bias = distance - noise
    root = math.sqrt(moments.squared_trace(name)) / count + reference.root[name]
    # In the direction of the bias: of the candidate as measured, of the reference at most.
    along = moments.variance_along(name, off) / count + min(reference.root[name], reference.noise[name]) * distance
    # `off` has noise itself, which makes `along` too large by about tr S^2.
    error = math.sqrt(max(4 * along - 2 * root**2, 2 * root**2))
    target_signal = target_square - reference.noise[name]
    return Figures(
        **known,
        squared_bias=squared_bias,
        squared_bias_error=error,
        bias_z=_normal_quantile(distance, noise, root, _noise_error(one, name, reference), rounding**2 * target_square),
        mean_squared_error=max(0.0, variance + squared_bias),
        cosine=_cosine(_dot(mean, target), signal, target_signal),
    )


def _noise_error(one: Measured, name: str, reference: Mean) -> float:
    return math.hypot(one.moments.variance_error(name) / one.count, reference.noise_error[name])


def _normal_quantile(distance: float, noise: float, root: float, noise_error: float, rounding: float) -> float:
    r"""Return the quantile of the normal distribution that a squared distance from the mean corresponds to.

    Without bias the distance over $\operatorname{tr} S$ is about F distributed (Box 1954, theorem 6.1,
    https://doi.org/10.1214/aoms/1177728786), with $(\operatorname{tr} S)^2 / \operatorname{tr} S^2$ degrees of freedom
    above, and below those that the error of the trace tells. The quantile is that of Paulson (1942),
    https://doi.org/10.1214/aoms/1177731604.

    Args:
        distance: $|\bar g - \nabla|^2$.
        noise: $\operatorname{tr} S$.
        root: $\sqrt{\operatorname{tr} S^2}$, or a bound.
        noise_error: Standard error of the trace.
        rounding: Squared distance that rounding may cause.
    """
    if noise <= rounding:
        return 0.0 if distance <= 10 * rounding else math.inf
    ratio = distance / (noise + rounding)
    above = max(1.0, (noise / root) ** 2) if root > 0 else 1.0
    below = 2 * (noise / noise_error) ** 2 if noise_error > 0 else math.inf
    a, b = 2 / (9 * above), 2 / (9 * below)
    cube_root = math.pow(ratio, 1 / 3)
    return ((1 - b) * cube_root - (1 - a)) / math.sqrt(a + b * cube_root**2)


def _cosine(dot: float, square: float, other_square: float) -> float:
    if square <= 0 or other_square <= 0:
        return math.nan
    return max(-1.0, min(1.0, dot / math.sqrt(square * other_square)))


def _dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return sum(float((a[part] * b[part]).sum()) for part in a)
