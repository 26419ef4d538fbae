"""A comparison as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from lightning_estimators.comparison.result import Comparison

__all__ = ["plot"]


def plot(result: Comparison) -> Figure:
    """Draw variance against time of a step, on logarithmic axes, with dashed lines of equal variance × time.

    Unbiased estimators are discs, biased ones crosses, what the module has is red. Exact ones, of no variance, are in
    the margin below.
    """
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.add_subplot()
    rows = [row for row in result.rows if row.refused is None and row.step_seconds > 0 and row.variance >= 0]
    positive = [row.variance for row in rows if row.variance > 0]
    floor = min(positive, default=1.0) / 10
    for row in rows:
        colour = "tab:red" if row.current else "tab:grey" if row.is_biased else "tab:blue"
        height = max(row.variance, floor)
        error = row.variance_error if row.variance > floor else 0.0
        axes.errorbar(
            1e3 * row.step_seconds, height, yerr=error, fmt="x" if row.is_biased else "o", color=colour, capsize=3
        )
        label = row.name if row.variance > floor else f"{row.name} (no variance)"
        axes.annotate(
            label, (1e3 * row.step_seconds, height), xytext=(5, 4), textcoords="offset points", fontsize=8, color=colour
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    if rows:
        times = np.array(sorted(1e3 * row.step_seconds for row in rows))
        ends = np.array([times[0] / 2, times[-1] * 2])
        work = [row.variance * 1e3 * row.step_seconds for row in rows if row.variance > 0]
        for level in np.geomspace(min(work), max(work), 5) if work else []:
            axes.plot(ends, level / ends, linestyle="--", linewidth=0.6, color="lightgrey", zorder=0)
    axes.set_xlabel("milliseconds of a step")
    axes.set_ylabel("total variance of the gradient")
    axes.set_title(
        "Dashed: equal variance × time. Discs: unbiased; crosses: biased; red: what the module has", fontsize=9
    )
    return figure
