"""Finished runs as lines of JSON, one file for each experiment."""

from __future__ import annotations

import fcntl
import json
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.experiment import Experiment, Outcome, Row, Run
from benchmarks.measure import environment

__all__ = ["Rows", "make_row"]


class Rows:
    """The rows in a folder, `<experiment>.jsonl`.

    A row is a JSON object: `experiment`, `settings`, `command` (repeats it), `commit` (of the code that ran; `+` after
    it if files differed from that), `environment` (date, hardware, threads, versions), `protocol`, `seconds`,
    `metrics`, `curves` (`{name: {"step": [...], "value": [...]}}`, values to 6 digits), and `failed` if the run ended
    early.

    Args:
        folder: Made when the first row is added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, experiment: str) -> list[Row]:
        """Return the rows of one experiment, oldest first.

        Raises:
            ValueError: A line is no row; names file and line.
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
        """Return the row of a run, if it is finished."""
        return next(
            (row for row in self.of(run.experiment) if Run(run.experiment, row["settings"]).key == run.key), None
        )

    def add(self, row: Row) -> None:
        """Append a row; processes that share the folder do not get in each other's way."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._path(row["experiment"]).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(json.dumps(row) + "\n")

    def _path(self, experiment: str) -> Path:
        return self.folder / f"{experiment}.jsonl"


def make_row(experiment: Experiment, run: Run, outcome: Outcome) -> Row:
    """Return the row of a run that has just finished."""
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
