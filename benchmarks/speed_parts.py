"""What the speed benchmark runs: its parts, each a function that returns the tables of that part as JSON."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from benchmarks import ours, plain
from benchmarks.fit import fit_times
from benchmarks.measure import Program, Times, alternate, ratio, timed
from benchmarks.memory_rows import memory
from benchmarks.problem import PROBLEMS, Problem, images, tiny
from benchmarks.storchastic import BIASES, LEAKS, Storchastic, bias

__all__ = ["COLUMNS", "GROWTH", "PARTS", "Setup"]


@dataclass(frozen=True)
class Setup:
    """How parts are run.

    Attributes:
        seconds: Time for each table of programs.
        threads: Of torch.
        quick: Whether sizes are tiny.
        estimators: Which are run.
        models: Which are run, by their names in `PROBLEMS`.
        peer: Storchastic, if it is to be run.
    """

    seconds: float
    threads: int
    quick: bool
    estimators: Sequence[str]
    models: Sequence[str]
    peer: Storchastic | None

    def problem(self, name: str) -> Problem:
        """Return the model of that name, tiny if sizes are."""
        return tiny(PROBLEMS[name]) if self.quick else PROBLEMS[name]

    @property
    def block(self) -> float:
        """Seconds of a program's turn."""
        return 0.0 if self.quick else 0.02


COLUMNS: dict[str, Callable[[Setup, Problem, str], Program | None]] = {
    "ours": lambda setup, problem, estimator: timed(ours.step(problem, estimator, images(problem))),
    "ours compiled": lambda setup, problem, estimator: (
        None if setup.quick else _maybe(ours.compiled_step(problem, estimator, images(problem)))
    ),
    "plain": lambda setup, problem, estimator: _maybe(plain.step(problem, estimator, images(problem))),
    "Storchastic": lambda setup, problem, estimator: (
        None if setup.peer is None else setup.peer.program(problem, estimator)
    ),
}
"""Programs that do the same, by the name of the column; None where there is none."""

GROWTH: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "D": ("bernoulli linear", "variables", (50, 100, 200, 400, 800, 1600, 3200)),
    "D, spread weights": ("spread weights", "variables", (50, 100, 200, 400, 800, 1600, 3200)),
    "S": ("bernoulli linear", "samples", (1, 5, 10)),
    "S, categorical": ("categorical linear", "samples", (1, 5, 10)),
    "S, categorical nonlinear": ("categorical nonlinear", "samples", (1, 5, 10)),
    "K": ("categorical linear", "categories", (2, 5, 10, 20, 50)),
    "batch": ("bernoulli linear", "batch", (10, 50, 100, 200, 500)),
}
"""What grows: in which model, which size, and through which values."""

GROWING = (("StochasticBackprop", "ours"), ("StochasticBackprop", "ours compiled"), ("Concrete", "plain"))
"""Programs of which growth is timed."""


UNENUMERATED = [e for e in ours.ESTIMATORS if e != "Enumeration"]
"""What can be timed with any number of latents."""

SPECIAL = {"six latents": ["Enumeration"], "spread weights": ["Concrete", "StochasticBackprop"]}
"""Models on which only some estimators are timed; on others all that can be."""


def models(setup: Setup) -> dict[str, Any]:
    """Time a step of every estimator, in all columns."""
    tables = {}
    for name in setup.models:
        estimators = [e for e in setup.estimators if e in SPECIAL.get(name, UNENUMERATED)]
        problem, reference = setup.problem(name), ("Concrete", "plain")
        programs = _programs(setup, problem, [(e, column) for e in estimators for column in COLUMNS] + [reference])
        times = alternate(programs, setup.seconds, setup.block)
        rows = {}
        for estimator in estimators:
            columns = {column: times[estimator, column] for column in COLUMNS if (estimator, column) in times}
            row: dict[str, Any] = {column: found.summary() for column, found in columns.items()}
            for column in columns.keys() & {"ours", "ours compiled"}:
                for other in columns.keys() - {column}:
                    row[f"{column} / {other}"] = ratio(columns[column], columns[other])
                row[f"{column} / plain Concrete"] = ratio(columns[column], times[reference])
            rows[estimator] = row
        tables[name] = {"problem": asdict(problem), "rows": rows}
        if setup.peer is not None:
            setup.peer.forget()
    return tables


def growth(setup: Setup) -> dict[str, Any]:
    """Time the steps of `GROWING` as one size grows."""
    tables = {}
    for name, (model, size, values) in GROWTH.items():
        if setup.quick:
            values = tuple(v for v in values if v <= 10)[:2] or values[:1]
        programs: dict[tuple[int, str, str], Program] = {}
        for value in values:
            changed: dict[str, Any] = {size: value}
            made = _programs(setup, replace(setup.problem(model), **changed), GROWING)
            programs |= {(value, *key): program for key, program in made.items()}
        times = alternate(programs, setup.seconds, setup.block)
        tables[name] = {"model": model, "size": size, "values": _growth_rows(times)}
    return tables


def _growth_rows(times: dict[tuple[int, str, str], Times]) -> dict[str, Any]:
    first = min(value for value, _, _ in times)
    rows: dict[str, Any] = {}
    for (value, estimator, column), found in times.items():
        row = found.summary()
        references = {
            "/ plain Concrete": (value, "Concrete", "plain"),
            "/ first plain Concrete": (first, "Concrete", "plain"),
        }
        ratios = {against: ratio(found, times[key]) for against, key in references.items()}
        rows.setdefault(str(value), {})[f"{estimator}, {column}"] = row | ratios
    return rows


def fit(setup: Setup) -> dict[str, Any]:
    """Time what a Trainer adds to a step."""
    # Lightning announces devices and ends of runs, of which there are many here.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    problem, tables = setup.problem("bernoulli linear"), {}
    for estimator in ("REINFORCE", "Concrete"):
        times = fit_times(problem, estimator, steps=5 if setup.quick else 200, rounds=2 if setup.quick else 7)
        rows = {
            name: own.summary() | {f"/ {other}": ratio(own, times[other]) for other in ("leanest", "loop")}
            for name, own in times.items()
        }
        tables[estimator] = {"problem": asdict(problem), "rows": rows}
    return tables


def peaks(setup: Setup) -> dict[str, Any]:
    """Measure the peak memory of all programs; of `quick` runs, of two."""
    names = [name for name in setup.models if name not in SPECIAL][: 1 if setup.quick else None]
    estimators = [e for e in setup.estimators if e in UNENUMERATED][: 2 if setup.quick else None]
    problems = {name: setup.problem(name) for name in names}
    return memory(problems, estimators, setup.peer, setup.threads, quick=setup.quick)


def storchastic(setup: Setup) -> dict[str, Any]:
    """Measure biases and leaks of Storchastic; nothing where it is not run."""
    if setup.peer is None:
        return {}
    repeats, steps, problem = 5 if setup.quick else 100, 5 if setup.quick else 500, setup.problem("bernoulli linear")
    return {
        "versions": setup.peer.versions,
        "bias": {e: {"Storchastic": bias(setup.peer, e, repeats), "ours": bias(None, e, repeats)} for e in BIASES},
        "growth": {e: setup.peer.growth(problem, e, steps) for e in LEAKS},
    }


PARTS: dict[str, Callable[[Setup], dict[str, Any]]] = {
    "models": models,
    "growth": growth,
    "fit": fit,
    "memory": peaks,
    "storchastic": storchastic,
}
"""By name, in the order in which they run."""


def _programs(setup: Setup, problem: Problem, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Program]:
    torch.manual_seed(0)
    made = {(estimator, column): COLUMNS[column](setup, problem, estimator) for estimator, column in wanted}
    return {key: program for key, program in made.items() if program is not None}


def _maybe(step: Callable[[], object] | None) -> Program | None:
    return None if step is None else timed(step)
