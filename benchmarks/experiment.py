"""What an experiment of the papers is: options that take several values, and what one run of them measures."""

from __future__ import annotations

import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

__all__ = ["Axis", "Context", "Curve", "Experiment", "Outcome", "Row", "Run", "Value"]

Value = str | int | float

Row = dict[str, Any]
"""A finished run as JSON: see `benchmarks.rows`."""

Curve = dict[str, list[float]]
"""`{"step": [...], "value": [...]}`."""


@dataclass(frozen=True)
class Axis:
    """An option of which a plan takes every value.

    Attributes:
        values: What a full run takes by default; their type is the option's.
        quick: What `--quick` takes by default.
        help: For `--help`.
        choices: All that is possible; None for any of the type.
    """

    values: tuple[Value, ...]
    quick: tuple[Value, ...]
    help: str
    choices: tuple[Value, ...] | None = None


@dataclass(frozen=True)
class Run:
    """One point of a plan.

    Attributes:
        experiment: Its name.
        settings: A value for every axis of the experiment, and whether the run is `quick`.
    """

    experiment: str
    settings: Mapping[str, Value]

    @property
    def key(self) -> str:
        """What two runs share only if they are the same."""
        return json.dumps([self.experiment, dict(self.settings)], sort_keys=True)

    @property
    def label(self) -> str:
        """Readable, and the name of a folder."""
        return " ".join(f"{name}={value}" for name, value in self.settings.items() if name != "quick")

    @property
    def command(self) -> str:
        """What repeats it."""
        options = [f"--{name.replace('_', '-')} {value}" for name, value in self.settings.items() if name != "quick"]
        quick = ["--quick"] if self.settings.get("quick") else []
        return " ".join(["python -m benchmarks", self.experiment, *options, *quick])


@dataclass(frozen=True)
class Context:
    """Where and beside what a run happens: nothing that its figures depend on.

    Attributes:
        folder: For checkpoints and TensorBoard; what is there of an interrupted run is gone on with.
        data_root: Where image data are.
        progress: How the run is announced, as "3 of 48".
        later: Seconds that the rest of the plan is expected to take; None if unknown.
    """

    folder: Path
    data_root: str = "data"
    progress: str = "1 of 1"
    later: float | None = 0.0


@dataclass(frozen=True)
class Outcome:
    """What a run measured.

    Attributes:
        metrics: Final figures by name, unrounded.
        curves: By name of the figure.
        seconds: What it took, all parts of an interrupted run together.
        failed: Why the run ended early, if it did: figures are those of the part before.
    """

    metrics: dict[str, float]
    curves: dict[str, Curve] = field(default_factory=dict)
    seconds: float = 0.0
    failed: str | None = None


class Experiment(ABC):
    """One experiment.

    Implementing one:

    1. Declare the class attributes. Everything that decides a figure is an axis or written down by `protocol`.
    2. Implement `run`, which goes on with what an interrupted call left in its folder (`FitExperiment` does so for
       whatever is a `fit` of the package).
    3. Implement `report` and `figures`, which take any set of rows, also an empty one.
    4. Add it to `benchmarks.experiments.EXPERIMENTS`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for `--help`."""
    axes: ClassVar[dict[str, Axis]]

    @abstractmethod
    def run(self, settings: Mapping[str, Value], context: Context) -> Outcome:
        """Run one point of the plan."""

    @abstractmethod
    def protocol(self, settings: Mapping[str, Value]) -> dict[str, Value]:
        """Return what the figures depend on besides the settings, in words and numbers."""

    @abstractmethod
    def report(self, rows: Sequence[Row]) -> list[str]:
        """Return this experiment's part of RESULTS.md, as lines."""

    def figures(self, rows: Sequence[Row], folder: Path) -> list[Path]:
        """Draw figures into the folder and return their files."""
        return []

    def is_possible(self, settings: Mapping[str, Value]) -> bool:
        """Whether this combination of values makes sense; a plan leaves the others out."""
        return True

    def plan(self, values: Mapping[str, Sequence[Value]], *, quick: bool) -> list[Run]:
        """Return a run for every combination of values.

        Args:
            values: For some axes, what to take in place of their defaults.
            quick: Whether defaults are the quick ones.
        """
        chosen = [values.get(name) or (axis.quick if quick else axis.values) for name, axis in self.axes.items()]
        points = (dict(zip(self.axes, point, strict=True)) for point in itertools.product(*chosen))
        extra = {"quick": 1} if quick else {}
        return [Run(self.name, point | extra) for point in points if self.is_possible(point | extra)]
