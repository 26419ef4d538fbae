"""Time a training step of every estimator, against the same estimators in plain PyTorch.

    python -m benchmarks.speed                      # the models of both papers: about two minutes
    python -m benchmarks.speed --parts growth fit   # growth with D, S, K and the batch; what `fit` adds to a step
    python -m benchmarks.speed --quick              # everything on tiny sizes, to see that it runs

Programs take turns within one run, so that ratios of one run hold on a machine that does other things besides. Every
figure is a median with quartiles; ratios are taken within rounds. Results go to a JSON file, with the command,
versions, hardware and load; a Markdown table is printed.

A step is the loss, one backward and the steps of all optimizers. `plain` is what one would write by hand for one model
(`benchmarks/plain.py`); for `StochasticBackprop` it evaluates the decoder at every changed latent, in chunks. A further
column is a function `(problem, estimator, batch) -> step or None`, added to `COLUMNS`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import ours, plain
from benchmarks.fit import fit_times
from benchmarks.measure import alternate, environment, ratio
from benchmarks.problem import PROBLEMS, Problem

__all__ = ["COLUMNS", "main", "table"]

COLUMNS: dict[str, Callable[[Problem, str, Tensor], Callable[[], object] | None]] = {
    "ours": ours.step,
    "plain": plain.step,
}

GROWTH: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "D": ("bernoulli linear", "variables", (50, 100, 200, 400, 800, 1600, 3200)),
    "S": ("bernoulli linear", "samples", (1, 5, 10)),
    "S, categorical": ("categorical linear", "samples", (1, 5, 10)),
    "K": ("categorical linear", "categories", (2, 5, 10, 20, 50)),
    "batch": ("bernoulli linear", "batch", (10, 50, 100, 200, 500)),
}
"""What grows: in which model, which size, and through which values."""

PARTS = ("models", "growth", "fit")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; return what was written."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="what to run (default: models; --quick: all)")
    parser.add_argument("--growth", nargs="+", choices=GROWTH, default=list(GROWTH), help="what grows (default: all)")
    parser.add_argument("--models", nargs="+", choices=PROBLEMS, default=list(PROBLEMS), help="default: all")
    parser.add_argument(
        "--estimators", nargs="+", choices=ours.ESTIMATORS, default=list(ours.ESTIMATORS), help="default: all"
    )
    parser.add_argument("--seconds", type=float, default=25.0, help="time for each table of programs (default: 25)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few rounds, under a minute")
    parser.add_argument(
        "--output",
        type=Path,
        help="JSON file (default: benchmarks/results/speed.json; --quick writes none unless told to)",
    )
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    torch.set_num_threads(options.threads)
    parts = options.parts or (list(PARTS) if options.quick else ["models"])
    seconds = 0.1 if options.quick else options.seconds
    results: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.speed", *(f'"{a}"' if " " in a else a for a in given)]),
        "environment": environment(),
    }
    print(json.dumps(results["environment"]), file=sys.stderr)
    if "models" in parts:
        problems = {name: _tiny(PROBLEMS[name]) if options.quick else PROBLEMS[name] for name in options.models}
        results["models"] = {name: _model(p, options.estimators, seconds) for name, p in problems.items()}
    if "growth" in parts:
        results["growth"] = {name: _growth(name, seconds, quick=options.quick) for name in options.growth}
    if "fit" in parts:
        results["fit"] = {name: _fit(name, quick=options.quick) for name in ("REINFORCE", "Concrete")}
    results["load_average_after"] = environment()["load_average"]
    output = options.output or (None if options.quick else Path(__file__).parent / "results" / "speed.json")
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    return results


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines: list[str] = []
    for name, model in results.get("models", {}).items():
        lines += [
            f"\n**{name}**\n",
            "| step | ours, ms | plain, ms | ours / plain | ours / plain Concrete |",
            "|---|---|---|---|---|",
        ]
        for estimator, row in model["rows"].items():
            cells = [_spread(row["ours"]), _spread(row.get("plain")), _ratio(row.get("ours / plain"))]
            lines.append(f"| {' | '.join([estimator, *cells, _ratio(row['ours / plain Concrete'])])} |")
    for name, growth in results.get("growth", {}).items():
        lines += [f"\n**{name}** ({growth['model']})\n", f"| step | {' | '.join(growth['values'])} |"]
        lines.append("|---" * (1 + len(growth["values"])) + "|")
        steps = next(iter(growth["values"].values()))
        for step in steps:
            cells = [f"{row[step]['median_ms']:.2f}" for row in growth["values"].values()]
            lines.append(f"| {step}, ms | {' | '.join(cells)} |")
    if "fit" in results:
        lines += ["\n**fit**\n", "| step | ms | over the leanest module | over the plain loop |", "|---|---|---|---|"]
    for estimator, fit in results.get("fit", {}).items():
        for name, row in fit["rows"].items():
            cells = [f"{estimator}: {name}", _spread(row), _ratio(row["/ leanest"]), _ratio(row["/ loop"])]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _model(problem: Problem, estimators: list[str], seconds: float) -> dict[str, Any]:
    programs = _programs(problem, estimators)
    reference = ("Concrete", "plain")
    if reference not in programs:
        programs |= _programs(problem, ["Concrete"], ["plain"])
    times = alternate({f"{estimator}, {column}": step for (estimator, column), step in programs.items()}, seconds)
    rows: dict[str, dict[str, Any]] = {estimator: {} for estimator in estimators}
    for estimator, column in programs:
        if estimator in rows:
            rows[estimator][column] = times[f"{estimator}, {column}"].summary()
    for estimator, row in rows.items():
        own = times[f"{estimator}, ours"]
        for column in row.keys() - {"ours"}:
            row[f"ours / {column}"] = ratio(own, times[f"{estimator}, {column}"])
        row["ours / plain Concrete"] = ratio(own, times["Concrete, plain"])
    return {"problem": asdict(problem), "rows": rows}


def _growth(name: str, seconds: float, *, quick: bool) -> dict[str, Any]:
    model, size, values = GROWTH[name]
    values = tuple(v for v in values if v <= 10)[:2] or values[:1] if quick else values
    base = _tiny(PROBLEMS[model]) if quick else PROBLEMS[model]
    programs: dict[tuple[int, str], Callable[[], object]] = {}
    for value in values:
        changed: dict[str, Any] = {size: value}
        problem = replace(base, **changed)
        steps = _programs(problem, ["StochasticBackprop"], ["ours"]) | _programs(problem, ["Concrete"], ["plain"])
        programs |= {(value, f"{estimator}, {column}"): step for (estimator, column), step in steps.items()}
    times = alternate({f"{value} {step}": program for (value, step), program in programs.items()}, seconds)
    rows: dict[str, dict[str, Any]] = {str(value): {} for value in values}
    for value, step in programs:
        rows[str(value)][step] = times[f"{value} {step}"].summary()
    for value in values:
        mine, other = (times[f"{value} {step}"] for step in ("StochasticBackprop, ours", "Concrete, plain"))
        rows[str(value)]["StochasticBackprop, ours"]["/ plain Concrete"] = ratio(mine, other)
    return {"model": model, "values": rows}


def _fit(estimator: str, *, quick: bool) -> dict[str, Any]:
    # Lightning announces devices and ends of runs, of which there are many here.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    problem = _tiny(PROBLEMS["bernoulli linear"]) if quick else PROBLEMS["bernoulli linear"]
    times = fit_times(problem, estimator, steps=5 if quick else 200, rounds=2 if quick else 7)
    rows: dict[str, dict[str, Any]] = {}
    for name, own in times.items():
        rows[name] = own.summary() | {f"/ {other}": ratio(own, times[other]) for other in ("leanest", "loop")}
    return {"problem": asdict(problem), "rows": rows}


def _programs(
    problem: Problem, estimators: list[str], columns: list[str] | None = None
) -> dict[tuple[str, str], Callable[[], object]]:
    torch.manual_seed(0)
    batch = (torch.rand(problem.batch, 1, 1, problem.pixels) < 0.2).float()
    made = {}
    for estimator in estimators:
        for column in COLUMNS if columns is None else columns:
            step = COLUMNS[column](problem, estimator, batch)
            if step is not None:
                made[estimator, column] = step
    return made


def _tiny(problem: Problem) -> Problem:
    return replace(problem, variables=4, categories=3, hidden=(6,) * len(problem.hidden), pixels=12, batch=5)


def _spread(times: dict[str, float] | None) -> str:
    if times is None:
        return ""
    return f"{times['median_ms']:.2f} ({times['quartile1_ms']:.2f} to {times['quartile3_ms']:.2f})"


def _ratio(given: dict[str, float] | None) -> str:
    return "" if given is None else f"{given['median']:.2f}"


if __name__ == "__main__":
    main()
