"""A comparison as text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lightning_estimators.comparison.rows import ALARM, Row

if TYPE_CHECKING:
    from lightning_estimators.comparison.result import Comparison

__all__ = ["table"]

_HEAD = (
    "estimator",
    "unbiased",
    "variance",
    "bias²",
    "bias z",
    "SNR",
    "cosine",
    "ms",
    "MB",
    "f, ∇f",
    "var × s",
    "draws",
)


def table(result: Comparison) -> str:
    """Return the rows as a table, below it what was refused, the reference and the recommendation."""
    lines = [_HEAD, *(_cells(row) for row in result.rows if row.refused is None)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    text = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    text.insert(1, "-" * len(text[0]))
    text += [f"refused: {row.name}: {row.refused}" for row in result.rows if row.refused is not None]
    text.append(f"reference: {result.reference}")
    if result.data_variance is not None:
        text.append(f"variance between batches: {_number(result.data_variance)}")
    text += result.notes
    if result.interrupted:
        text.append("interrupted: figures are of what was drawn until then")
    text.append(f"recommendation: {result.recommendation}")
    return "\n".join(text)


def _cells(row: Row) -> tuple[str, ...]:
    said = {True: "yes", False: "no", None: "?"}[row.claims_unbiased]
    return (
        f"{'* ' if row.current else '  '}{row.name}",
        f"{said}, but" if row.claims_unbiased and row.bias_z > ALARM else said,
        f"{_number(row.variance)} ± {_number(row.variance_error, 2)}",
        f"{_number(row.squared_bias)} ± {_number(row.squared_bias_error, 2)}",
        f"{row.bias_z:.1f}" if math.isfinite(row.bias_z) else _number(row.bias_z),
        _number(row.signal_to_noise),
        _number(row.cosine),
        _number(1e3 * row.step_seconds),
        _number(row.peak_bytes / 2**20),
        "?" if row.evaluations is None else f"{row.evaluations[0]}, {row.evaluations[1]}",
        _number(row.work_variance),
        str(row.draws),
    )


def _number(value: float, digits: int = 3) -> str:
    return "?" if math.isnan(value) else f"{value:.{digits}g}"
