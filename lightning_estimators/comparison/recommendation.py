"""What the figures of a comparison advise, in words, and no more than their errors allow."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_estimators.comparison.reference import Reference
from lightning_estimators.comparison.rows import ALARM, Row

__all__ = ["recommend"]

TIME_ERROR = 0.1
"""Relative error that measured times are taken to have."""

_LARGEST_BIAS = 0.3  # of the norm of the gradient, beyond which no biased estimator is recommended


def recommend(rows: Sequence[Row], reference: Reference, data_variance: float | None) -> str:
    """Return a recommendation, with its conditions.

    Args:
        rows: Of a comparison.
        reference: What their bias is relative to.
        data_variance: Variance between batches, if it is known.
    """
    answered = [row for row in rows if row.refused is None and not math.isnan(row.work_variance)]
    measured = [row for row in answered if row.variance != 0 or row.signal_to_noise != 0]
    unbiased = [row for row in measured if not row.is_biased]
    if not answered:
        return "nothing could be measured: see what each row says was refused."
    if not measured:
        return "none, since every estimate was 0: there is no gradient here, or one that so few draws miss."
    current = next((row for row in measured if row.current), None)
    best = min(unbiased, key=_work, default=None)
    said = [_of_unbiased(best, current, [row for row in unbiased if row is not best])]
    said += _of_biased([row for row in measured if row.is_biased], best or current, reference)
    said += [
        f"{row.name} says that it is unbiased, but its mean is {row.bias_z:.1f} standard errors from the reference "
        f"({reference.kind}): take it for biased"
        for row in measured
        if row.claims_unbiased and row.bias_z > ALARM
    ]
    said += _of_data(measured, best, data_variance)
    if all(math.isnan(row.bias_z) for row in measured):
        said.append("no bias could be measured, since there is nothing to compare the means with")
    return "; ".join(said) + "."


def _work(row: Row) -> tuple[float, float]:
    return row.work_variance, row.step_seconds  # of exact ones the fastest


def _of_unbiased(best: Row | None, current: Row | None, others: Sequence[Row]) -> str:
    if best is None:
        return "no unbiased estimator was measured"
    if best.current:
        following = min(others, key=_work, default=None)
        if following is None:
            return f"unbiased: your {best.name}, the only one that was measured"
        if _is_clear(best, following):
            return f"keep your {best.name}: {_times(best, following)} {following.name}, the next best unbiased one"
        return f"keep your {best.name}: {following.name}, the next best unbiased one, is within the errors as good"
    compared = current or min(others, key=_work, default=None)
    if compared is None:
        return f"unbiased: {best.name}, the only one that was measured"
    whose = f"your {compared.name}" if compared.current else f"{compared.name}, the next best"
    if compared.current and compared.is_biased:
        whose += " (which is biased)"
    if _is_clear(best, compared):
        return f"unbiased: {best.name}, {_times(best, compared)} {whose}"
    if best.work_variance > compared.work_variance:
        return f"unbiased: {best.name}, with no less variance × time than {whose}"
    return f"unbiased: {best.name}, but within the errors it is as good as {whose}"


def _of_biased(biased: Sequence[Row], compared: Row | None, reference: Reference) -> list[str]:
    if compared is None or not reference.norm > 0:
        return []
    offers = []
    for row in biased:
        known = row.squared_bias > 2 * row.squared_bias_error
        largest = row.squared_bias if known else row.squared_bias + 2 * row.squared_bias_error
        relative = math.sqrt(max(0.0, largest)) / reference.norm
        if relative <= _LARGEST_BIAS and row is not compared and _is_clear(row, compared):
            offers.append((row, relative, known))
    if not offers:
        return []
    row, relative, known = min(offers, key=lambda offer: _work(offer[0]))
    amount = "a bias of" if known else "a bias too small to be measured here, at most"
    percent = f"{100 * relative:.2g} % of the gradient's norm"
    return [f"if {amount} {percent} is acceptable: {row.name}, {_times(row, compared)} {compared.name}"]


def _of_data(measured: Sequence[Row], best: Row | None, data_variance: float | None) -> list[str]:
    if data_variance is None or best is None or not data_variance > 0:
        return []
    quiet = [row for row in measured if not row.is_biased and row.variance < 0.1 * data_variance]
    if not quiet:
        return []
    fastest = min(quiet, key=lambda row: row.step_seconds)
    return [
        f"batches differ by a variance of {data_variance:.3g}, below a tenth of which nothing is gained: of the "
        f"unbiased ones there, {fastest.name} is the fastest"
    ]


def _is_clear(better: Row, worse: Row) -> bool:
    """Whether the ratio of variance × time is beyond two standard errors."""
    if better.work_variance >= worse.work_variance or math.isnan(worse.work_variance):
        return False
    if better.work_variance == 0:
        return True
    errors = [row.variance_error / row.variance for row in (better, worse)] + [TIME_ERROR]
    return math.log(worse.work_variance / better.work_variance) > 2 * math.hypot(*errors)


def _times(better: Row, worse: Row) -> str:
    if better.work_variance == 0:
        return "which is exact here, against"
    ratio = worse.work_variance / better.work_variance
    return f"{ratio:.{0 if ratio >= 9.95 else 1}f} times less variance × time than"
