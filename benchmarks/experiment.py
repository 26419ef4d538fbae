"""What an experiment is: options that take several values, a run for each combination, and what a run measures."""

from __future__ import annotations

import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from benchmarks.comparison import Claim

__all__ = ["Axis", "Curve", "Experiment", "Outcome", "Row", "Run", "Value"]

Value = str | int | float

Row = dict[str, Any]
"""A finished run as JSON: see `benchmarks.plan.Rows`."""

Curve = dict[str, list[float]]
"""`{"step": [...], "value": [...]}`."""


@dataclass(frozen=True)
class Axis:
    """An option of an experiment; a plan runs every value of it."""

    values: tuple[Value, ...]  # defaults of a full run; their type is the type of the option
    quick: tuple[Value, ...]  # defaults with `--quick`
    help: str  # for `--help`
    choices: tuple[Value, ...] | None = None  # all possible values; None if any value of the type is possible


@dataclass(frozen=True)
class Run:
    """One combination of settings: a value for every axis of an experiment, and `quick` if the run is a quick one."""

    experiment: str
    settings: Mapping[str, Value]

    @property
    def key(self) -> str:
        """A text that is the same for two runs only if they are the same run."""
        return json.dumps([self.experiment, dict(self.settings)], sort_keys=True)

    @property
    def label(self) -> str:
        """A readable name, which is also the name of the run's folder."""
        return " ".join(f"{name}={value}" for name, value in self.settings.items() if name != "quick")

    @property
    def command(self) -> str:
        """The command that repeats the run."""
        options = [f"--{name.replace('_', '-')} {value}" for name, value in self.settings.items() if name != "quick"]
        quick = ["--quick"] if self.settings.get("quick") else []
        return " ".join(["python -m benchmarks", self.experiment, *options, *quick])


@dataclass(frozen=True)
class Outcome:
    """What a run measured."""

    metrics: dict[str, float]  # final figures by name, unrounded
    curves: dict[str, Curve] = field(default_factory=dict)
    seconds: float = 0.0  # time of training and evaluation, before and after interruptions
    failed: str | None = None  # why the run ended early, if it did; the curves are those of the part before


class Experiment(ABC):
    """One experiment.

    Implementing one:

    1. Declare the class attributes. Everything that decides a figure is an axis, or stated by `protocol`.
    2. Implement `run`, which continues what an interrupted call left in its folder. An experiment whose runs are fits
       of the package derives from `benchmarks.fit_experiment.FitExperiment`, which does so.
    3. Implement `report` and, if there are any, `figures`. Both take any set of rows, also an empty one.
    4. Add it to `EXPERIMENTS` in `benchmarks/__main__.py`.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    """Of its part of the report; the name if it is empty."""
    summary: ClassVar[str]
    """One line for `--help` and the report."""
    axes: ClassVar[dict[str, Axis]]
    claims: Sequence[Claim] = ()
    """Questions that the rows answer, in the order of the report."""

    @abstractmethod
    def run(self, settings: Mapping[str, Value], folder: Path, data_root: str) -> Outcome:
        """Run one combination of settings.

        Args:
            settings: A value for every axis.
            folder: Where an interrupted run left its checkpoint, and this one leaves its own.
            data_root: Folder of image data.
        """

    @abstractmethod
    def protocol(self, settings: Mapping[str, Value]) -> dict[str, Value]:
        """Return what the figures depend on besides the settings."""

    @abstractmethod
    def report(self, rows: Sequence[Row]) -> list[str]:
        """Return the tables of this experiment for RESULTS.md, as lines."""

    def figures(self, rows: Sequence[Row], folder: Path) -> list[Path]:
        """Draw figures into the folder and return their files."""
        return []

    def is_possible(self, settings: Mapping[str, Value]) -> bool:
        """Return whether this combination makes sense; a plan leaves out the others."""
        return True

    def plan(self, values: Mapping[str, Sequence[Value]], *, quick: bool) -> list[Run]:
        """Return a run for every combination of values.

        Args:
            values: Values of some axes, in place of their defaults.
            quick: Whether the defaults are the quick ones.
        """
        chosen = [values.get(name) or (axis.quick if quick else axis.values) for name, axis in self.axes.items()]
        points = (dict(zip(self.axes, point, strict=True)) for point in itertools.product(*chosen))
        extra = {"quick": 1} if quick else {}
        return [Run(self.name, point | extra) for point in points if self.is_possible(point | extra)]
