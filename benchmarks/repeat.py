"""Finished runs once more, against their rows: the same figures on the same machine and code, like ones elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.experiment import Experiment, Row
from benchmarks.plan import Plan
from benchmarks.rows import Rows

__all__ = ["compared", "repeat"]


def repeat(plan: Plan, experiments: Mapping[str, Experiment]) -> Iterator[str]:
    """Run the finished runs of a plan again, away from its folders, and yield a report of each.

    Args:
        plan: Runs that are not finished are left out.
        experiments: By name.

    """
    finished = [(run, row) for run in plan.runs if (row := plan.rows.find(run)) is not None]
    if not finished:
        yield "None of these runs has a row to compare with; leave out --repeat to run them."
    with TemporaryDirectory() as folder:
        for run, row in finished:
            again = Plan([run], experiments, Rows(Path(folder, "rows")), Path(folder, "runs"), plan.data_root)
            again.execute()
            found = again.rows.find(run)
            if found is not None:
                yield "\n".join([run.command, *compared(row, found)])


def compared(row: Row, found: Row) -> list[str]:
    """Return a line for each metric: what the row has, and what was found.

    Args:
        row: As it was kept.
        found: Of the same run, now.
    """
    before, now = row["metrics"], found["metrics"]
    same = before == now and row["curves"] == found["curves"]
    verdict = "the same, bit for bit, curves included" if same else "not the same bit for bit"
    code = f"row: commit {row['commit']}, {row['environment']['processor']}, torch {row['environment']['torch']}"
    lines = [f"  {verdict} ({code}; now: {found['commit']}, {found['environment']['processor']})"]
    for name in sorted(before.keys() | now.keys()):
        kept, new = before.get(name), now.get(name)
        change = "" if kept is None or new is None or kept == new else f"  ({new - kept:+.3g})"
        lines.append(f"  {name}: {kept}, now {new}{change}")
    return lines
