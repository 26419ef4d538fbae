"""Plans of runs: finished runs are rows and never repeated, interrupted ones continue, processes share the work."""

from __future__ import annotations

import fcntl
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.experiment import Experiment, Outcome, Row, Run
from benchmarks.speed.measure import environment

__all__ = ["Plan", "Rows", "compared", "duration", "repeat"]

BUDGETS = {"epochs", "steps", "samples"}
"""Settings to which the time of a run is about proportional."""


class Rows:
    """The finished runs in a folder, `<experiment>.jsonl`: one JSON object a line.

    A row has `experiment`, `settings`, `command` (which repeats it), `commit` (of the code that ran, with `+` if files
    differed from it), `environment` (date, hardware, threads, versions), `protocol`, `seconds`, `metrics`, `curves`
    (`{name: {"step": [...], "value": [...]}}`, values to six digits), and `failed` if the run ended early.

    Args:
        folder: Made when the first row is added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, experiment: str) -> list[Row]:
        """Return the rows of one experiment, oldest first.

        Raises:
            ValueError: A line is no row; the message names file and line.
        """
        path = self._path(experiment)
        rows = []
        for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], start=1):
            try:
                row = json.loads(line)
                Run(row["experiment"], row["settings"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}, is no row ({error}). Delete the line; its run will be repeated."
                ) from None
            rows.append(row)
        return rows

    def find(self, run: Run) -> Row | None:
        """Return the row of a run, or None if it is not finished."""
        return next(
            (row for row in self.of(run.experiment) if Run(run.experiment, row["settings"]).key == run.key), None
        )

    def add(self, row: Row) -> None:
        """Append a row, also while other processes do."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._path(row["experiment"]).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(json.dumps(row) + "\n")

    def _path(self, experiment: str) -> Path:
        return self.folder / f"{experiment}.jsonl"


class Plan:
    """An ordered list of runs.

    Processes that work on the same plan in the same folders take different runs: a run in progress is locked, and the
    lock goes with its process.

    Args:
        runs: In the order in which they are to be done.
        experiments: By name.
        rows: Where finished runs are kept.
        folder: Where runs in progress keep checkpoints and TensorBoard's events, one folder each.
        data_root: Folder of image data.
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
        self._say(self._summary())
        for run in missing:
            with self._claimed(run) as folder:
                if folder is not None and self.rows.find(run) is None:
                    self._perform(run, folder)
        self._say(self._summary())

    def expected_seconds(self, *runs: Run) -> float | None:
        """Return what runs should take, by the most similar finished run of each and its budget; None if unknown."""
        total = 0.0
        for run in runs:
            rows = self.rows.of(run.experiment)
            if not rows:
                return None
            names = {*run.settings} - {"seed", "lr", *BUDGETS}
            closest = max(rows, key=lambda row: sum(row["settings"].get(name) == run.settings[name] for name in names))
            budget = [
                float(run.settings[name]) / float(closest["settings"][name]) for name in BUDGETS & {*run.settings}
            ]
            total += float(closest["seconds"]) * math.prod(budget)
        return total

    def _perform(self, run: Run, folder: Path) -> None:
        done = len(self.runs) - len(self.missing())
        label = f"[{done + 1} of {len(self.runs)}] {run.experiment} {run.label}"
        self._say(f"{label}: expected {duration(self.expected_seconds(run))}")
        experiment = self.experiments[run.experiment]
        outcome = experiment.run(run.settings, folder, self.data_root)
        self.rows.add(_row(experiment, run, outcome))
        for checkpoint in folder.glob("*.ckpt"):
            checkpoint.unlink()
        ended = "finished" if outcome.failed is None else f"failed ({outcome.failed})"
        self._say(f"{label}: {ended}, {duration(outcome.seconds)}")

    def _summary(self) -> str:
        missing = self.missing()
        left = f"; {len(missing)} left, {duration(self.expected_seconds(*missing))}" if missing else ""
        return f"{len(self.runs) - len(missing)} of {len(self.runs)} runs done{left}"

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

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


def repeat(plan: Plan) -> Iterator[str]:
    """Repeat the finished runs of a plan away from its folders, and yield a comparison with the row of each."""
    finished = [(run, row) for run in plan.runs if (row := plan.rows.find(run)) is not None]
    if not finished:
        yield "None of these runs has a row to compare with; leave out --repeat to run them."
    with TemporaryDirectory() as folder:
        for run, row in finished:
            again = Plan([run], plan.experiments, Rows(Path(folder, "rows")), Path(folder, "runs"), plan.data_root)
            again.execute()
            found = again.rows.find(run)
            if found is not None:
                yield "\n".join([run.command, *compared(row, found)])


def compared(row: Row, found: Row) -> list[str]:
    """Return a line for each metric, with the value of a row and that of the same run repeated now."""
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


def duration(seconds: float | None) -> str:
    """Return seconds in the unit that one would say them in."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def _row(experiment: Experiment, run: Run, outcome: Outcome) -> Row:
    curves = {
        name: {"step": curve["step"], "value": [float(f"{value:.6g}") for value in curve["value"]]}
        for name, curve in outcome.curves.items()
    }
    row: dict[str, Any] = {
        "experiment": run.experiment,
        "settings": dict(run.settings),
        "command": run.command,
        "commit": _commit(),
        "environment": environment() | {"lightning-estimators": metadata.version("lightning-estimators")},
        "protocol": experiment.protocol(run.settings),
        "seconds": round(outcome.seconds, 1),
        "metrics": outcome.metrics,
        "curves": curves,
    }
    return row | ({} if outcome.failed is None else {"failed": outcome.failed})


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
