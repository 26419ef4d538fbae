"""Figures of the speed benchmark, from its results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.figures import save

__all__ = ["draw_growth", "draw_steps"]

COLORS = {"ours": "C0", "ours compiled": "C2", "plain": "C7", "Storchastic": "C1"}


def draw_steps(part: Mapping[str, Any], path: Path) -> Path:
    """Draw the time of every step over that of plain Concrete, of one model per panel.

    Args:
        part: Part "models" of the results.
        path: Ends in .png.
    """
    tables = {name: table for name, table in part["tables"].items() if "Concrete" in table["rows"]}
    figure = Figure(figsize=(11, 1.2 + 3.4 * -(-len(tables) // 2)), layout="constrained")
    handles: dict[str, Any] = {}
    for index, (name, table) in enumerate(tables.items()):
        axes = figure.add_subplot(-(-len(tables) // 2), 2, index + 1)
        rows, reference = table["rows"], table["rows"]["Concrete"]["plain"]["median_ms"]
        for i, column in enumerate(COLORS):
            points = [
                (row[column]["median_ms"] / reference, y + 0.15 * (i - 1.5))
                for y, row in enumerate(rows.values())
                if column in row
            ]
            if points:
                x, y = zip(*points, strict=True)
                (handles[column],) = axes.plot(x, y, "o", color=COLORS[column], markersize=5)
        axes.axvline(1, color="k", linewidth=0.8)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.invert_yaxis()
        axes.grid(axis="x", which="both", linewidth=0.3)
        axes.set(xscale="log", title=name, xlabel=f"time of a step / plain Concrete ({reference:.2f} ms)")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(_conditions(part), fontsize="small")
    return save(figure, path)


def draw_growth(part: Mapping[str, Any], path: Path) -> Path:
    """Draw times of steps as sizes grow, one size per panel, with linear growth beside them.

    Args:
        part: Part "growth" of the results.
        path: Ends in .png.
    """
    tables = part["tables"]
    figure = Figure(figsize=(11, 1.0 + 2.9 * -(-len(tables) // 3)), layout="constrained")
    handles: dict[str, Any] = {}
    for index, (name, table) in enumerate(tables.items()):
        axes = figure.add_subplot(-(-len(tables) // 3), 3, index + 1)
        sizes = [int(value) for value in table["values"]]
        steps = list(next(iter(table["values"].values())))
        for step in steps:
            times = [row[step]["median_ms"] for row in table["values"].values()]
            (handles[step],) = axes.plot(sizes, times, color=COLORS[step.rpartition(", ")[2]], marker=".")
        start = table["values"][str(sizes[0])][steps[0]]["median_ms"]
        guide = [start * size / sizes[0] for size in sizes]
        (handles["linear growth"],) = axes.plot(sizes, guide, color="k", linestyle=":", linewidth=0.8)
        axes.set(xscale="log", yscale="log", title=name, xlabel=table["size"], ylabel="step, ms")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(_conditions(part), fontsize="small")
    return save(figure, path)


def _conditions(part: Mapping[str, Any]) -> str:
    found = part["environment"]
    threads = "1 thread" if found["threads"] == 1 else f"{found['threads']} threads"
    return f"medians, {threads}, {found['processor']}, torch {found['torch']}, {found['date']}"
