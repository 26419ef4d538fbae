"""Runs in turn: finished ones are never repeated, interrupted ones go on, several processes share the work."""

from __future__ import annotations

import fcntl
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.experiment import Context, Experiment, Row, Run
from benchmarks.progress import duration, say
from benchmarks.rows import Rows, make_row

__all__ = ["Plan"]

BUDGETS = {"epochs", "steps", "samples"}
"""Settings that time is proportional to, or nearly so."""


class Plan:
    """An ordered list of runs.

    Processes that work on the same plan, in the same folders, take different runs: a run in progress is locked, and
    the lock goes with its process.

    Args:
        runs: In the order in which they are to be done.
        experiments: By name.
        rows: Where finished runs are kept.
        folder: Where runs in progress keep checkpoints and TensorBoard's events, one folder each.
        data_root: Where image data are.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        experiments: Mapping[str, Experiment],
        rows: Rows,
        folder: Path,
        data_root: str = "data",
    ) -> None:
        self.runs = list({run.key: run for run in runs}.values())
        self.experiments, self.rows, self.folder, self.data_root = experiments, rows, folder, data_root

    def missing(self) -> list[Run]:
        """Return the runs that are not finished."""
        done = {Run(name, row["settings"]).key for name in self.experiments for row in self.rows.of(name)}
        return [run for run in self.runs if run.key not in done]

    def execute(self) -> None:
        """Do what is missing."""
        missing = self.missing()
        say(self._summary(missing), end=True)
        for run in missing:
            with self._claimed(run) as folder:
                if folder is not None and self.rows.find(run) is None:
                    self._perform(run, folder)
        missing = self.missing()
        say(self._summary(missing), end=True)

    def expected_seconds(self, run: Run) -> float | None:
        """Return what the run most alike took, in proportion to its budget; None if there is none."""

        def alike(row: Row) -> int:
            same = [name for name, value in run.settings.items() if row["settings"].get(name) == value]
            return len({*same} - {"seed", "lr", *BUDGETS})

        rows = self.rows.of(run.experiment)
        if not rows:
            return None
        closest = max(rows, key=alike)
        budget = [float(run.settings[name]) / float(closest["settings"][name]) for name in BUDGETS & {*run.settings}]
        return float(closest["seconds"]) * math.prod(budget)

    def _perform(self, run: Run, folder: Path) -> None:
        missing = self.missing()
        later = [self.expected_seconds(other) for other in missing if other.key != run.key]
        progress = f"[{len(self.runs) - len(missing) + 1} of {len(self.runs)}] {run.experiment} {run.label}"
        say(progress)
        known = None if None in later else sum(seconds or 0.0 for seconds in later)
        experiment = self.experiments[run.experiment]
        outcome = experiment.run(run.settings, Context(folder, self.data_root, progress, known))
        self.rows.add(make_row(experiment, run, outcome))
        for checkpoint in folder.glob("*.ckpt"):
            checkpoint.unlink()
        ended = "finished" if outcome.failed is None else f"failed ({outcome.failed})"
        say(f"{progress}: {ended}, {duration(outcome.seconds)}", end=True)

    def _summary(self, missing: Sequence[Run]) -> str:
        expected = [self.expected_seconds(run) for run in missing]
        known = None if None in expected else sum(seconds or 0.0 for seconds in expected)
        left = f"; {len(missing)} left, {duration(known)}" if missing else ""
        return f"{len(self.runs) - len(missing)} of {len(self.runs)} runs done{left}"

    @contextmanager
    def _claimed(self, run: Run) -> Iterator[Path | None]:
        """Give the run's folder, or None while another process has it."""
        folder = self.folder / run.experiment / run.label.replace(" ", ",")
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield None
                return
            yield folder
