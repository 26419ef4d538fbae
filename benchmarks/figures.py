"""Curves as figures: a line for the mean over seeds, a band for their standard deviation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.experiment import Curve, Row

__all__ = ["COLORS", "Panel", "band", "curves_by_estimator", "curves_of", "draw", "save"]

COLORS = {
    "REINFORCE": "C7",
    "REINFORCE-MovingAverage": "C5",
    "Concrete": "C1",
    "Pathwise": "C1",
    "REBAR": "C2",
    "G-REP": "C2",
    "RELAX": "C0",
    "RelaxedREBAR": "C4",
    "StochasticBackprop": "C3",
    "StochasticBackprop (S = 5)": "C6",
    "StochasticBackprop (S = 10)": "C9",
    "StochasticBackprop-N4": "C3",
    "StochasticBackprop-N8": "C8",
    "StochasticBackprop-jump": "C9",
}
"""The color of an estimator in all figures; two that share a color are never in the same figure."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    x: str  # names of the axes, with their units
    y: str
    lines: Mapping[str, Sequence[Curve]]  # curves of all seeds, by what the legend calls them; empty ones are left out
    log_y: bool = False
    scale: float = 1.0  # factor on values
    floor: float = -math.inf  # values below it are not drawn: a logarithm of what is only rounding
    marks: Mapping[str, float] | None = None  # dashed horizontal lines, by what the legend calls them


def curves_of(rows: Sequence[Row], name: str) -> list[Curve]:
    """Return the curves of that name, of rows that have it and did not fail."""
    return [row["curves"][name] for row in rows if "failed" not in row and name in row["curves"]]


def curves_by_estimator(rows: Sequence[Row], names: Iterable[str], curve: str) -> dict[str, list[Curve]]:
    """Return the curves of that name of all seeds, by estimator."""
    return {name: curves_of([row for row in rows if row["settings"]["estimator"] == name], curve) for name in names}


def band(curves: Sequence[Curve]) -> tuple[list[float], list[float], list[float]]:
    """Return steps that all curves have, mean, and standard deviation over curves there (0 for a single curve)."""
    found = [dict(zip(curve["step"], curve["value"], strict=True)) for curve in curves]
    steps = sorted(set.intersection(*map(set, found))) if found else []
    values = [[one[step] for one in found] for step in steps]
    spread = [statistics.stdev(v) if len(v) > 1 and all(map(math.isfinite, v)) else 0.0 for v in values]
    return steps, [sum(v) / len(v) for v in values], spread


def draw(panels: Sequence[Panel], path: Path, columns: int) -> Path:
    """Draw panels row by row, with one legend below them, and write the file.

    Args:
        panels: From left to right, then down.
        path: Ends in .png.
        columns: Panels in a row.
    """
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.7 * rows + 0.4), layout="constrained")
    handles: dict[str, Artist] = {}
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(grid, panels, strict=False):
        _fill(axes, panel)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4, frameon=False)
    return save(figure, path)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure: the same bytes for the same rows and the same matplotlib."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return path


def _fill(axes: Axes, panel: Panel) -> None:
    for index, (label, curves) in enumerate(panel.lines.items()):
        steps, means, spreads = band(curves)
        points = [
            (step, mean * panel.scale, spread * panel.scale)
            for step, mean, spread in zip(steps, means, spreads, strict=True)
            if math.isfinite(mean) and mean >= panel.floor
        ]
        if not points:
            continue
        x, y, spread = zip(*points, strict=True)
        color = COLORS.get(label, f"C{index % 10}")
        axes.plot(x, y, color=color, label=label, linewidth=1.2, marker="." if len(x) == 1 else None)
        low, high = ([a + sign * b for a, b in zip(y, spread, strict=True)] for sign in (-1, 1))
        if panel.log_y:  # a band that reaches 0 has no lower end on this axis
            low = [bottom if bottom > 0 else value for bottom, value in zip(low, y, strict=True)]
        axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    for label, height in (panel.marks or {}).items():
        axes.axhline(height, color="k", linestyle="--", linewidth=0.8, label=label)
    axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
    if panel.log_y and panel.lines:
        axes.set_yscale("log")
