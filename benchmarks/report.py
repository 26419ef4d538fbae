"""RESULTS.md: made of the rows, never written by hand."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.experiment import Experiment, Row, Run
from benchmarks.plan import Plan
from benchmarks.progress import duration
from benchmarks.rows import Rows

__all__ = ["write_report"]

HEAD = """\
# The papers' experiments, repeated

Made by `python -m benchmarks report` from the rows in `benchmarks/results`; nothing here is written by hand. Every row
is one run, with the command that repeats it, the commit, versions, hardware and protocol. `±` is the standard deviation
over seeds, as in the papers; n is how many there are. Figures of the papers are quoted from their text. What was not
run is not here, but under "Not yet run". With `--repeat` behind its command a run is done again and compared with its
row: the same bit for bit on the same machine, code and number of threads.

- First paper: Grathwohl et al., *Backpropagate through anything* (draft of *Backpropagation through the void*, 2018).
- Second paper: Echraibi et al., *Generalized stochastic backpropagation* (2020).

| experiment | what | runs | failed |
|---|---|---|---|"""


def write_report(
    experiments: Mapping[str, Experiment], rows: Rows, path: Path, plans: Mapping[str, Plan] | None = None
) -> None:
    """Write the report, and beside the rows its figures.

    Args:
        experiments: By name, in the order of the report.
        rows: Finished runs.
        path: File to write.
        plans: What was to be run, by line of the file that says so; None to list nothing as missing.
    """
    folder = rows.folder / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    finished = {name: rows.of(name) for name in experiments}
    lines = [HEAD]
    for name, experiment in experiments.items():
        failed = sum("failed" in row for row in finished[name])
        lines.append(f"| [{name}](#{name}) | {experiment.summary} | {len(finished[name])} | {failed} |")
    for name, experiment in experiments.items():
        lines += [f"\n## {name}\n", f"{experiment.summary}\n", *experiment.report(finished[name])]
        for figure in experiment.figures(finished[name], folder) if finished[name] else []:
            lines.append(f"\n![{name}: {figure.stem}]({os.path.relpath(figure, path.parent)})")
        lines += _runs(finished[name])
    if plans is not None:
        lines += _missing(plans)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def _runs(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the runs, folded away: how to repeat each, and what it was done with."""
    if not rows:
        return
    yield f"\n<details><summary>The {len(rows)} runs, with their commands</summary>\n"
    yield "| command | commit | threads | torch | processor | seconds |\n|---|---|---|---|---|---|"
    for row in rows:
        at = row["environment"]
        cells = [f"`{row['command']}`", row["commit"], at["threads"], at["torch"], at["processor"], row["seconds"]]
        yield f"| {' | '.join(map(str, cells))} |"
    yield "\n</details>"


def _missing(plans: Mapping[str, Plan]) -> Iterator[str]:
    """Yield the lines of the plan that are not finished, with what is left of them and how long that should take."""
    yield "\n## Not yet run\n"
    counted: set[str] = set()
    total, unknown = 0.0, False
    entries = []
    for line, plan in plans.items():
        left = [run for run in plan.missing() if run.key not in counted]
        counted |= {run.key for run in left}
        if not left:
            continue
        expected = [plan.expected_seconds(run) for run in left]
        seconds = None if None in expected else sum(one or 0.0 for one in expected)
        total, unknown = total + (seconds or 0.0), unknown or seconds is None
        entries.append(f"- `{line}`: {len(left)} of {len(plan.runs)} runs, {_time(seconds)}{_named(left, plan.runs)}")
    if not entries:
        yield "Everything that was planned is done."
        return
    yield (
        f"{len(counted)} runs of `benchmarks/plan.txt`, {'at least ' if unknown else ''}{duration(total)} by what runs "
        "alike took, one after the other.\n"
    )
    yield from entries


def _time(seconds: float | None) -> str:
    return "no run like it has been timed" if seconds is None else f"expected {duration(seconds)}"


def _named(left: Sequence[Run], of: Sequence[Run]) -> str:
    """Name runs by the settings in which those of a line differ, if only some are left."""
    if len(left) == len(of):
        return ""
    varying = [name for name in of[0].settings if len({run.settings[name] for run in of}) > 1]
    return ": " + "; ".join(" ".join(f"{name}={run.settings[name]}" for name in varying) for run in left)
