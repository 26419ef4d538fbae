"""Peak memory of steps of every program, each in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks import ours, plain
from benchmarks.measure import Step
from benchmarks.memory import peak
from benchmarks.problem import Problem, images, tiny
from benchmarks.storchastic import SUPPORTED, Storchastic

__all__ = ["LARGE", "memory", "peak_apart"]

COLUMNS = {"ours": ours.step, "ours compiled": ours.compiled_step, "plain": plain.step}
"""Programs of this interpreter."""

LARGE = Problem(pixels=3072)
"""Colour images of 32 by 32, on which the number of latents grows."""

VARIABLES = (200, 1000, 3000, 10000)
"""Through these values."""


def memory(
    problems: Mapping[str, Problem],
    estimators: Sequence[str],
    peer: Storchastic | None,
    threads: int,
    *,
    quick: bool,
) -> dict[str, Any]:
    """Return peaks of every program on every model, and of StochasticBackprop as the number of latents grows."""
    models = {}
    columns = [column for column in COLUMNS if not (quick and column == "ours compiled")]
    for name, problem in problems.items():
        rows: dict[str, Any] = {}
        for estimator in estimators:
            peaks = {column: peak_apart(column, problem, estimator, threads) for column in columns}
            rows[estimator] = {column: found for column, found in peaks.items() if found is not None}
            if peer is not None and estimator in SUPPORTED:
                rows[estimator]["Storchastic"] = peer.peak(problem, estimator)
        models[name] = {"problem": asdict(problem), "rows": rows}
    large, values = (tiny(LARGE), (2, 4)) if quick else (LARGE, VARIABLES)
    growth = {
        str(value): {
            column: peak_apart(column, replace(large, variables=value), "StochasticBackprop", threads)
            for column in columns
            if column != "plain"
        }
        for value in values
    }
    return {"models": models, "D": {"problem": asdict(large), "values": growth}}


def peak_apart(column: str, problem: Problem, estimator: str, threads: int) -> dict[str, float] | None:
    """Return the peak memory of a program in a process that runs nothing else; None if there is no such program.

    Raises:
        RuntimeError: The process ends without an answer, as it does where memory is short.
    """
    # A fork of a server that has only imported: a fork of this process would inherit what it has allocated.
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
        step = COLUMNS[column](problem, estimator, images(problem))
        if step is None:
            raise LookupError
        return step

    try:
        there.send(peak(make))
    except LookupError:
        there.send(None)
