"""Gamma variables: Figures 1 and 2 of the second paper."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch

from benchmarks.charts import Panel, curves_of, draw
from benchmarks.experiment import Axis, Context, Curve, Row, Value
from benchmarks.fits import FitExperiment, Settings
from benchmarks.progress import logged_curves
from benchmarks.seeds import Difference, Seeds
from benchmarks.summary import Answer, extreme, failures, grouped, late_log_mean, quoted, seeds, stated, table
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
    """The same costs, which do not say that they end the series: stochastic backpropagation takes its jump form."""

    def cost(self) -> Objective:
        """Return f."""
        if self.problem == "squares":
            return Separable(lambda z: (z - self.target).square())
        return Separable(lambda z: torch.exp(-self.target * z))


class Gamma(FitExperiment):
    """Second paper, 6.1, Figures 1 and 2."""

    name = "gamma"
    summary = "Gamma variables, squares and exponentials (second paper 6.1, Figures 1 and 2)."
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

    def changes(self, settings: Mapping[str, Value], context: Context) -> Settings:
        """Return problem, estimator and budget: five epochs, a hundred records."""
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
        """Return tables, and what the paper says of them."""
        lines = []
        for (steps,), group in grouped(rows, "steps").items():
            cells = {
                (problem, dimension): {
                    name: {metric: seeds(by.get((name,), []), metric) for metric in METRICS} for name in ESTIMATORS
                }
                for (problem, dimension), part in grouped(group, "problem", "dimension").items()
                for by in [grouped(part, "estimator")]
            }
            lines.append(f"\n{steps} steps; exact loss per variable, its mean over training, log-variance at the end:")
            head = ("f", "d", "estimator", "loss", "mean loss", "log-variance", "n")
            lines += table(
                head,
                [
                    (
                        str(problem),
                        str(dimension),
                        name,
                        *(stated(figure[m], 4) for m in METRICS),
                        _n(figure["loss_per_variable"]),
                    )
                    for (problem, dimension), figures in cells.items()
                    for name, figure in figures.items()
                    if figure["loss_per_variable"] is not None
                ],
            )
            lines += _claims({f"{problem}, d = {d}": figures for (problem, d), figures in cells.items()})
        return [*(lines or ["No rows yet."]), *failures(rows)]

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


METRICS = ("loss_per_variable", "mean_loss_per_variable", "log_variance")

Figures = Mapping[str, Mapping[str, Seeds | None]]


def _n(figure: Seeds | None) -> str:
    return "0" if figure is None else str(figure.n)


def _claims(places: Mapping[str, Figures]) -> list[str]:
    ours = "StochasticBackprop"

    def lowest(metric: str, names: Sequence[str], leave: Sequence[str]) -> dict[str, Answer]:
        return {
            place: extreme({name: part[metric] for name, part in figures.items() if name not in leave}, names)
            for place, figures in places.items()
        }

    return [
        quoted(
            "The stochastic backpropagation estimator converges to the minimal value in all cases faster than the "
            "other estimators",
            "second paper, 6.1",
            "By the exact loss, mean over training.",
            lowest("mean_loss_per_variable", [ours], [JUMP]),
        ),
        quoted(
            "the variance of the gradient is competitive with the pathwise gradient",
            "second paper, 6.1",
            "By the log-variance at the end: at most log 2 above, or a tie.",
            {place: _competitive(figures[ours], figures["Pathwise"]) for place, figures in places.items()},
        ),
        quoted(
            "The jump form, too, converges faster than pathwise gradients, score function and G-REP",
            "ours",
            "By the exact loss, mean over training.",
            lowest("mean_loss_per_variable", [JUMP], [ours]),
        ),
    ]


def _competitive(ours: Mapping[str, Seeds | None], pathwise: Mapping[str, Seeds | None]) -> Answer:
    one, other = ours["log_variance"], pathwise["log_variance"]
    if one is None or other is None:
        return Answer("not measured")
    difference = Difference(one, other)
    near = difference.value < math.log(2) or difference.sign == 0
    return Answer("yes" if near else "no", f"{difference.value:+.2f}")
