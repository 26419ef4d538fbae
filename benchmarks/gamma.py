"""Gamma variables: Figures 1 and 2 of Echraibi et al. (2020)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from benchmarks.comparison import Difference, Finding, Judge, ahead, grouped, of_estimator, seeds, stated, table
from benchmarks.experiment import Row, Value
from benchmarks.figures import Panel, curves_by_estimator, draw
from benchmarks.fit_experiment import FitExperiment, late_log_mean, logged_curves
from lightning_estimators.cli import EstimatorCLI
from lightning_estimators.modules import GammaToyModel
from lightning_estimators.objectives import Objective, Separable

__all__ = ["Gamma", "UnsummedGammaToy"]

SERIES, JUMP = "StochasticBackprop", "StochasticBackprop-jump"
RIVALS = ("Pathwise", "REINFORCE", "G-REP")
METRICS = {
    "loss_per_variable": "final loss",
    "mean_loss_per_variable": "mean loss",
    "log_variance": "log-variance",
}
"""Columns of the tables; losses are exact, and per variable."""
PLACE = {"{}, d = {}": "mean_loss_per_variable"}


class UnsummedGammaToy(GammaToyModel):
    """The gamma toy with costs whose series cannot be summed: stochastic backpropagation takes its jump form."""

    def cost(self) -> Objective:
        """Return f as a function of which only the values and slopes are known."""
        if self.problem == "squares":
            return Separable(lambda z: (z - self.target).square())
        return Separable(lambda z: torch.exp(-self.target * z))


def _competitive(rows: Sequence[Row]) -> Iterator[Finding]:
    """Judge whether the variance is at most twice that of the pathwise gradient, or a tie with it."""
    for (problem, dimension), part in grouped(rows, "problem", "dimension").items():
        ours, pathwise = (seeds(of_estimator(part, name), "log_variance") for name in (SERIES, "Pathwise"))
        where, compared = f"{problem}, d = {dimension}", "StochasticBackprop against Pathwise"
        if ours is None or pathwise is None:
            yield Finding(where, compared, "not run")
            continue
        gap = Difference(ours, pathwise)
        near = gap.value < math.log(2) or gap.sign == 0
        text, found = f"log-variance {gap}", {"log-variance": gap.value}
        yield Finding(where, compared, "holds" if near else "does not hold", text, gap.error is None, found)


def _by_problem(findings: Sequence[Finding]) -> str:
    """Say for which costs and numbers of variables a claim holds, and give the first figures that speak against it."""
    parts: dict[str, list[str]] = {}
    for finding in findings:
        problem, _, dimension = finding.setting.partition(", d = ")
        parts.setdefault(f"{'so' if finding.state == 'holds' else 'not so'} for {problem}", []).append(dimension)
    told = [f"{start} with d = {', '.join(dimensions)}" for start, dimensions in parts.items()]
    against = next((f"; {f.setting}: {f.text}" for f in findings if f.state != "holds"), "")
    return ", ".join(sorted(told, reverse=True)) + against


class Gamma(FitExperiment):
    """The toy experiments of Echraibi et al. (2020), section 6.1, Figures 1 and 2."""

    name = "gamma"
    judges: ClassVar[Mapping[str, Judge]] = {
        "series_is_fastest": ahead([SERIES], RIVALS, PLACE, by=("problem", "dimension")),
        "is_competitive": _competitive,
        "jump_is_fastest": ahead([JUMP], RIVALS, PLACE, by=("problem", "dimension")),
    }
    readings = dict.fromkeys(("series_is_fastest", "jump_is_fastest"), _by_problem)

    def worked_out(self, settings: Mapping[str, Value], data_root: str) -> dict[str, Any]:
        """Return the model, how steps are divided into five epochs, and how often is measured."""
        steps = int(settings["steps"])
        if steps < 100 or steps % 100:
            raise ValueError(f"the gamma toy takes a multiple of 100 steps, got {steps}.")
        model = UnsummedGammaToy if settings["estimator"] == JUMP else GammaToyModel
        measured = {"log_every": steps // self.sizes(settings)["measurements"], "num_batches": steps // 5}
        return {"model": f"{model.__module__}.{model.__qualname__}"} | measured

    def evaluate(self, cli: EstimatorCLI, settings: Mapping[str, Value]) -> dict[str, float]:
        """Return the exact loss, and the variance at the end."""
        logged = logged_curves(cli.trainer)
        loss, losses, dimension = float(cli.model.exact_loss()), logged["toy/loss"]["value"], int(settings["dimension"])
        return {
            "loss": loss,
            "loss_per_variable": loss / dimension,
            "mean_loss_per_variable": sum(losses) / len(losses) / dimension,
            "log_variance": late_log_mean(logged["toy/log_variance"]),
        }

    def report(self, rows: Sequence[Row]) -> list[str]:
        """Return a table for each cost, with a column of every metric for each number of variables."""
        lines: list[str] = []
        for (steps, problem), group in grouped(rows, "steps", "problem").items():
            columns = grouped(group, "dimension")
            body = []
            for name in self.estimators:
                parts = [of_estimator(part, name) for part in columns.values()]
                cells = [stated(seeds(part, metric)) for part in parts for metric in METRICS]
                if counts := {len(part) for part in parts if part}:  # of seeds, which may differ
                    body.append([name, " to ".join(map(str, sorted({min(counts), max(counts)}))), *cells])
            labels = [f"{label}, d = {d}" for (d,) in columns for label in METRICS.values()]
            lines += table([f"{problem}, {steps} steps", "seeds", *labels], body)
        return lines

    def figures(self, rows: Sequence[Row], folder: Path) -> list[Path]:
        """Draw loss over variance, a figure for each f, a column for each dimension."""
        files = []
        for (steps, problem), group in grouped(rows, "steps", "problem").items():
            upper, lower = [], []
            for (dimension,), part in grouped(group, "dimension").items():
                loss, variance = (curves_by_estimator(part, self.estimators, c) for c in ("loss", "log_variance"))
                title, scale = f"{problem}, d = {dimension}", 1 / int(dimension)
                upper.append(Panel(title, "step", "exact loss per variable", loss, log_y=True, scale=scale))
                lower.append(Panel(title, "step", "log-variance of the gradient", variance))
            files.append(draw([*upper, *lower], folder / f"gamma_{problem}_{steps}.png", columns=len(upper)))
        return files
