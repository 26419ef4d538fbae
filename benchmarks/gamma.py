"""Gamma variables: Figures 1 and 2 of Echraibi et al. (2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch

from benchmarks.comparison import Claim, Difference, Finding, extreme, grouped, late_log_mean, seeds, stated, table
from benchmarks.experiment import Axis, Curve, Row, Value
from benchmarks.figures import Panel, curves_of, draw
from benchmarks.fit_experiment import FitExperiment, Settings, logged_curves
from lightning_estimators.cli import EstimatorCLI
from lightning_estimators.modules import GammaToyModel
from lightning_estimators.objectives import Objective, Separable

__all__ = ["Gamma", "UnsummedGammaToy"]

ESTIMATORS: dict[str, Settings] = {
    "StochasticBackprop": {"class_path": "StochasticBackprop"},
    "StochasticBackprop-jump": {"class_path": "StochasticBackprop", "init_args": {"f_gradient": True}},
    "Pathwise": {"class_path": "Pathwise"},
    "REINFORCE": {"class_path": "REINFORCE", "init_args": {"baseline": {"class_path": "NoBaseline"}}},
    "G-REP": {"class_path": "GeneralizedReparameterization"},
}

JUMP = "StochasticBackprop-jump"


class UnsummedGammaToy(GammaToyModel):
    """The gamma toy with costs whose series cannot be summed: stochastic backpropagation takes its jump form."""

    def cost(self) -> Objective:
        """Return f as a function of which only the values and slopes are known."""
        if self.problem == "squares":
            return Separable(lambda z: (z - self.target).square())
        return Separable(lambda z: torch.exp(-self.target * z))


METRICS = {
    "loss_per_variable": "final loss",
    "mean_loss_per_variable": "mean loss",
    "log_variance": "log-variance",
}
"""Columns of the tables; losses are exact, and per variable."""


def _of(rows: Sequence[Row], name: str) -> list[Row]:
    return [row for row in rows if row["settings"]["estimator"] == name]


def _count(rows: Sequence[Row]) -> str:
    """Return the number of seeds, as "2 to 5" if it differs between numbers of variables."""
    counts = {len(part) for part in grouped(rows, "dimension").values()}
    return " to ".join(map(str, sorted({min(counts), max(counts)})))


def _lowest(metric: str, name: str, leave_out: str) -> Callable[[Sequence[Row]], Iterator[Finding]]:
    def judge(rows: Sequence[Row]) -> Iterator[Finding]:
        for (problem, dimension), part in grouped(rows, "problem", "dimension").items():
            figures = {one: seeds(_of(part, one), metric) for one in ESTIMATORS if one != leave_out}
            state, text = extreme(figures, [name])
            yield Finding(f"{problem}, d = {dimension}", name, state, text)

    return judge


def _competitive(rows: Sequence[Row]) -> Iterator[Finding]:
    """Judge whether the variance is at most twice that of the pathwise gradient, or a tie with it."""
    for (problem, dimension), part in grouped(rows, "problem", "dimension").items():
        ours, pathwise = (seeds(_of(part, name), "log_variance") for name in ("StochasticBackprop", "Pathwise"))
        where = f"{problem}, d = {dimension}"
        if ours is None or pathwise is None:
            yield Finding(where, "StochasticBackprop against Pathwise", "not run")
            continue
        difference = Difference(ours, pathwise)
        near = difference.value < math.log(2) or difference.sign == 0
        yield Finding(
            where,
            "StochasticBackprop against Pathwise",
            "holds" if near else "does not hold",
            f"log-variance {difference}",
            difference.error is None,
            {"log-variance": difference.value},
        )


def _by_problem(findings: Sequence[Finding]) -> str:
    """Say for which costs a claim holds, and what speaks against it elsewhere."""
    held = [finding.setting for finding in findings if finding.state == "holds"]
    against = [f"{f.setting}: {f.text}" for f in findings if f.text and f.state != "holds"]
    return "; ".join([*([f"so for {'; '.join(held)}; not for"] if held and against else []), *against]).replace(
        "not for; ", "not for "
    )


CLAIMS = (
    Claim(
        "Does stochastic backpropagation converge faster for gamma variables?",
        "It converges to the minimal value in all cases faster than the other estimators.",
        "Echraibi et al. (2020), section 6.1",
        _lowest("mean_loss_per_variable", "StochasticBackprop", leave_out=JUMP),
        _by_problem,
    ),
    Claim(
        "Is its variance there about that of the pathwise gradient?",
        "The variance of the gradient is competitive with the pathwise gradient.",
        "Echraibi et al. (2020), section 6.1",
        _competitive,
    ),
    Claim(
        "Does the jump form, too, converge faster for gamma variables?",
        "Its mean loss over training is below that of pathwise gradient, score function and G-REP.",
        None,
        _lowest("mean_loss_per_variable", JUMP, leave_out="StochasticBackprop"),
        _by_problem,
    ),
)


class Gamma(FitExperiment):
    """The toy experiments of Echraibi et al. (2020), section 6.1, Figures 1 and 2."""

    name = "gamma"
    summary = "Gamma variables under squares and exponentials: Echraibi et al. (2020), section 6.1."
    claims = CLAIMS
    axes: ClassVar[dict[str, Axis]] = {
        "problem": Axis(("squares", "exponentials"), ("squares",), "f", ("squares", "exponentials")),
        "dimension": Axis((1, 10, 100), (1, 10), "number of variables d"),
        "steps": Axis((5000,), (100,), "optimizer steps, one sample each (the paper does not say); a multiple of 100"),
        "estimator": Axis(tuple(ESTIMATORS), tuple(ESTIMATORS), "estimator", tuple(ESTIMATORS)),
        "seed": Axis((0, 1, 2, 3, 4), (0,), "seed of the noise"),
    }
    curve_names: ClassVar[dict[str, str]] = {"toy/loss": "loss", "toy/log_variance": "log_variance"}

    def config(self, settings: Mapping[str, Value]) -> str:
        """Return the file of the toy."""
        return "gamma_toy.yaml"

    def changes(self, settings: Mapping[str, Value], data_root: str) -> Settings:
        """Return problem, estimator and budget: five epochs, with a hundred measurements."""
        steps = int(settings["steps"])
        if steps < 100 or steps % 100:
            raise ValueError(f"the gamma toy takes a multiple of 100 steps, got {steps}.")
        model = UnsummedGammaToy if settings["estimator"] == JUMP else GammaToyModel
        return {
            "seed_everything": settings["seed"],
            "trainer": {"max_epochs": 5, "log_every_n_steps": steps // 100, "limit_val_batches": 0},
            "model": {
                "class_path": f"{model.__module__}.{model.__qualname__}",
                "init_args": {
                    "estimator": ESTIMATORS[str(settings["estimator"])],
                    "problem": settings["problem"],
                    "target": 0.49,
                    "num_latents": settings["dimension"],
                    "num_draws": 50 if settings.get("quick") else 1000,
                    "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-3}},
                },
            },
            "data": {"init_args": {"num_batches": steps // 5}},
        }

    def protocol(self, settings: Mapping[str, Value]) -> dict[str, Value]:
        """Return what the figures depend on besides the settings."""
        return {
            "batch": 1,
            "ε": 0.49,
            "steps": "our choice: the paper does not say",
            "start": "shape and scale 1 (our choice), their logarithms are learned",
            "optimizer": "Adam, lr 1e-3, betas .9 and .999",
            "baseline of REINFORCE": "none",
            "StochasticBackprop": "the series in closed form, as in the paper; -jump: not summed, our jump form",
            "loss": "exact expectation, sum over variables",
            "log-variance": f"natural log of the sample variance of {50 if settings.get('quick') else 1000} fresh "
            "estimates, mean over parameters; at the end: of the mean variance over the last tenth",
        }

    def evaluate(self, cli: EstimatorCLI, settings: Mapping[str, Value]) -> dict[str, float]:
        """Return the exact loss, and the variance at the end."""
        logged = logged_curves(cli.trainer)
        loss = float(cli.model.exact_loss())
        losses = logged["toy/loss"]["value"]
        return {
            "loss": loss,
            "loss_per_variable": loss / int(settings["dimension"]),
            "mean_loss_per_variable": sum(losses) / len(losses) / int(settings["dimension"]),
            "log_variance": late_log_mean(logged["toy/log_variance"]),
        }

    def report(self, rows: Sequence[Row]) -> list[str]:
        """Return a table for each cost, with a column of every metric for each number of variables."""
        lines: list[str] = []
        for (steps, problem), group in grouped(rows, "steps", "problem").items():
            columns = grouped(group, "dimension")
            labels = [f"{label}, d = {d}" for (d,) in columns for label in METRICS.values()]
            body = [
                [
                    name,
                    _count(_of(group, name)),
                    *(stated(seeds(_of(part, name), metric)) for part in columns.values() for metric in METRICS),
                ]
                for name in ESTIMATORS
                if _of(group, name)
            ]
            lines += table([f"{problem}, {steps} steps", "seeds", *labels], body)
        return lines

    def figures(self, rows: Sequence[Row], folder: Path) -> list[Path]:
        """Draw loss over variance, a figure for each f, a column for each dimension."""
        files = []
        for (steps, problem), group in grouped(rows, "steps", "problem").items():
            upper, lower = [], []
            for (dimension,), part in grouped(group, "dimension").items():
                by = grouped(part, "estimator")

                def lines(curve: str, by: dict[tuple[Value, ...], list[Row]] = by) -> dict[str, list[Curve]]:
                    return {name: curves_of(by.get((name,), []), curve) for name in ESTIMATORS}

                title, scale = f"{problem}, d = {dimension}", 1 / int(dimension)
                upper.append(Panel(title, "step", "exact loss per variable", lines("loss"), log_y=True, scale=scale))
                lower.append(Panel(title, "step", "log-variance of the gradient", lines("log_variance")))
            files.append(draw([*upper, *lower], folder / f"gamma_{problem}_{steps}.png", columns=len(upper)))
        return files
