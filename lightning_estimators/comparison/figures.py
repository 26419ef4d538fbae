"""The figures of a candidate: variance, and bias against a reference, each with its error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_estimators.comparison.measurement import Measured
from lightning_estimators.comparison.rows import Figures

__all__ = ["Mean", "figures", "pooled"]


@dataclass(frozen=True)
class Mean:
    r"""An estimate of a gradient, and its noise; S is its covariance.

    Attributes:
        mean: By group.
        noise: $\operatorname{tr} S$, by group or joint name.
        noise_error: Its standard error.
        root: A bound from above of $\sqrt{\operatorname{tr} S^2}$.
        squared_trace: One from below of $\operatorname{tr} S^2$.
        pool: What was pooled, each with its weight.
    """

    mean: dict[str, Tensor]
    noise: dict[str, float]
    noise_error: dict[str, float]
    root: dict[str, float]
    squared_trace: dict[str, float]
    pool: Sequence[tuple[float, Measured]]

    def variance_along(self, name: str, direction: Mapping[str, Tensor]) -> float:
        r"""Return $b^T S b$ for a direction b."""
        return sum(w**2 * one.moments.variance_along(name, direction) / one.count for w, one in self.pool)


def pooled(measured: Sequence[Measured], names: Sequence[str]) -> Mean:
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
    noise, error, root, squared_trace = {}, {}, {}, {}
    pool = list(zip(weights, measured, strict=True))
    for name in names:
        noise[name] = sum(w**2 * one.moments.total_variance(name) / one.count for w, one in pool)
        error[name] = math.hypot(*(w**2 * one.moments.variance_error(name) / one.count for w, one in pool))
        roots = [w**2 * math.sqrt(one.moments.squared_trace(name)) / one.count for w, one in pool]
        root[name], squared_trace[name] = sum(roots), sum(r**2 for r in roots)
    return Mean(mean, noise, error, root, squared_trace, pool)


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
    own_root = math.sqrt(moments.squared_trace(name)) / count
    root = own_root + reference.root[name]
    # In the direction of the bias, which is known with noise: that adds tr S^2.
    along = moments.variance_along(name, off) / count * _student(moments.degrees_of_freedom)
    along += reference.variance_along(name, off) - own_root**2 - reference.squared_trace[name]
    error = math.sqrt(2 * root**2 + 4 * max(0.0, along))
    target_signal = target_square - reference.noise[name]
    return Figures(
        **known,
        squared_bias=squared_bias,
        squared_bias_error=error,
        bias_z=_normal_quantile(distance, noise, root, _noise_error(one, name, reference), rounding**2 * target_square),
        mean_squared_error=max(0.0, variance + squared_bias),
        cosine=_cosine(_dot(mean, target), signal, target_signal),
    )


def _student(degrees_of_freedom: int) -> float:
    """Return by how much an estimated variance must grow for two standard errors to be what they are if it is known.

    That is the square of the ratio of the quantiles of Student's t and of the normal distribution at 97.5 %, by the
    first terms of the expansion in Abramowitz & Stegun (1964), *Handbook of mathematical functions*, 26.7.5.
    """
    return 1.0 if not degrees_of_freedom else (1 + 1.21 / degrees_of_freedom + 1.44 / degrees_of_freedom**2) ** 2


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
