"""What `python -m benchmarks.speed` measures: each part is a function that returns its tables as JSON."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed import package, plain
from benchmarks.speed.measure import Program, Step, Times, alternate, peak, ratio, timed
from benchmarks.speed.package import fit_times
from benchmarks.speed.plain import PROBLEMS, Problem, images, tiny
from benchmarks.speed.storchastic import BIASES, LEAKS, SUPPORTED, Storchastic, bias

__all__ = ["COLUMNS", "GROWTH", "PARTS", "Setup"]


@dataclass(frozen=True)
class Setup:
    """What all parts have in common.

    Attributes:
        seconds: Time for the programs of one table.
        threads: Threads of torch.
        quick: Whether sizes are tiny.
        estimators: Names of the estimators to run.
        models: Names of the models to run, in `PROBLEMS`.
        peer: Storchastic; None to leave it out.
    """

    seconds: float
    threads: int
    quick: bool
    estimators: Sequence[str]
    models: Sequence[str]
    peer: Storchastic | None

    def problem(self, name: str) -> Problem:
        """Return the sizes of the model of that name."""
        return tiny(PROBLEMS[name]) if self.quick else PROBLEMS[name]

    @property
    def block(self) -> float:
        """Seconds of the turn of a program."""
        return 0.0 if self.quick else 0.02


APART: dict[str, Callable[[Problem, str, Tensor], Step | None]] = {
    "ours": package.step,
    "ours compiled": package.compiled_step,
    "plain": plain.step,
}
"""What makes the steps whose memory is measured, by the name of the column."""

LARGE = Problem(pixels=3072)
"""The model in which memory is measured as the number of latents grows: colour images of 32 by 32."""

COLUMNS: dict[str, Callable[[Setup, Problem, str], Program | None]] = {
    "ours": lambda setup, problem, estimator: timed(package.step(problem, estimator, images(problem))),
    "ours compiled": lambda setup, problem, estimator: (
        None if setup.quick else _maybe(package.compiled_step(problem, estimator, images(problem)))
    ),
    "plain": lambda setup, problem, estimator: _maybe(plain.step(problem, estimator, images(problem))),
    "Storchastic": lambda setup, problem, estimator: (
        None if setup.peer is None else setup.peer.program(problem, estimator)
    ),
}
"""What makes the program of a column; None if the column has none for an estimator."""

GROWTH: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "D": ("bernoulli linear", "variables", (50, 100, 200, 400, 800, 1600, 3200)),
    "D, spread weights": ("spread weights", "variables", (50, 100, 200, 400, 800, 1600, 3200)),
    "S": ("bernoulli linear", "samples", (1, 5, 10)),
    "S, categorical": ("categorical linear", "samples", (1, 5, 10)),
    "S, categorical nonlinear": ("categorical nonlinear", "samples", (1, 5, 10)),
    "K": ("categorical linear", "categories", (2, 5, 10, 20, 50)),
    "batch": ("bernoulli linear", "batch", (10, 50, 100, 200, 500)),
}
"""The model, the size that grows in it, and its values."""

GROWING = (("StochasticBackprop", "ours"), ("StochasticBackprop", "ours compiled"), ("Concrete", "plain"))
"""The programs that are timed as a size grows."""


UNENUMERATED = [e for e in package.ESTIMATORS if e != "Enumeration"]
"""Estimators that can be timed with any number of latents."""

SPECIAL = {"six latents": ["Enumeration"], "spread weights": ["Concrete", "StochasticBackprop"]}
"""Models on which only some estimators are timed."""


def models(setup: Setup) -> dict[str, Any]:
    """Time a step of every estimator in every column."""
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
        share = min(1.0, setup.seconds / 20)
        steps, rounds = (5, 2) if setup.quick else (max(50, round(200 * share)), max(3, round(7 * share)))
        times = fit_times(problem, estimator, steps, rounds)
        rows = {
            name: own.summary() | {f"/ {other}": ratio(own, times[other]) for other in ("leanest", "loop")}
            for name, own in times.items()
        }
        tables[estimator] = {"problem": asdict(problem), "rows": rows}
    return tables


def memory(setup: Setup) -> dict[str, Any]:
    """Measure the peak memory of every program, and of the exact discrete rule as the number of latents grows."""
    names = [name for name in setup.models if name not in SPECIAL][: 1 if setup.quick else None]
    estimators = [e for e in setup.estimators if e in UNENUMERATED][: 2 if setup.quick else None]
    columns = [column for column in APART if not (setup.quick and column == "ours compiled")]
    tables = {}
    for name in names:
        problem, rows = setup.problem(name), {}
        for estimator in estimators:
            peaks = {column: peak_apart(column, problem, estimator, setup.threads) for column in columns}
            rows[estimator] = {column: found for column, found in peaks.items() if found is not None}
            if setup.peer is not None and estimator in SUPPORTED:
                rows[estimator]["Storchastic"] = setup.peer.peak(problem, estimator)
        tables[name] = {"problem": asdict(problem), "rows": rows}
    large, values = (tiny(LARGE), (2, 4)) if setup.quick else (LARGE, (200, 1000, 3000, 10000))
    growth = {
        str(value): {
            column: peak_apart(column, replace(large, variables=value), "StochasticBackprop", setup.threads)
            for column in columns
            if column != "plain"
        }
        for value in values
    }
    return {"models": tables, "D": {"problem": asdict(large), "values": growth}}


def storchastic(setup: Setup) -> dict[str, Any]:
    """Measure biases and leaks of Storchastic, where it is run."""
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
    "memory": memory,
    "storchastic": storchastic,
}
"""The parts, in the order in which they run."""


def _programs(setup: Setup, problem: Problem, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Program]:
    torch.manual_seed(0)
    made = {(estimator, column): COLUMNS[column](setup, problem, estimator) for estimator, column in wanted}
    return {key: program for key, program in made.items() if program is not None}


def _maybe(step: Callable[[], object] | None) -> Program | None:
    return None if step is None else timed(step)


def peak_apart(column: str, problem: Problem, estimator: str, threads: int) -> dict[str, float] | None:
    """Return the peak memory of a step in a process that runs nothing else; None if the column has no such step.

    Raises:
        RuntimeError: The process ends without an answer, as it does where memory is short.
    """
    # The server has only imported this module; a fork of this process would inherit what it has allocated.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(there, column, problem, estimator, threads))
    process.start()
    there.close()
    try:
        answer: dict[str, float] | None = here.recv()
    except EOFError:
        raise RuntimeError(f"the process for {estimator}, {column}, of {problem} ended without an answer.") from None
    finally:
        process.join()
    return answer


def _answer(there: Connection, column: str, problem: Problem, estimator: str, threads: int) -> None:
    torch.set_num_threads(threads)

    def make() -> Step:
        torch.manual_seed(0)
        step = APART[column](problem, estimator, images(problem))
        if step is None:
            raise LookupError
        return step

    try:
        there.send(peak(make))
    except LookupError:
        there.send(None)
