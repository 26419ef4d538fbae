"""Bayesian logistic regression: Figure 3 of Echraibi et al. (2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from benchmarks.comparison import (
    Claim,
    Difference,
    Finding,
    Seeds,
    State,
    extreme,
    grouped,
    late_log_mean,
    seeds,
    stated,
    table,
)
from benchmarks.experiment import Axis, Row, Value
from benchmarks.figures import Panel, curves_of, draw
from benchmarks.fit_experiment import FitExperiment, Settings, logged_curves
from lightning_estimators.cli import EstimatorCLI

__all__ = ["Regression"]

ESTIMATORS: dict[str, Settings] = {
    "StochasticBackprop-N4": {"class_path": "StochasticBackprop", "init_args": {"form": "series", "order": 4}},
    "StochasticBackprop-N8": {"class_path": "StochasticBackprop", "init_args": {"form": "series", "order": 8}},
    "StochasticBackprop-jump": {"class_path": "StochasticBackprop", "init_args": {"form": "jump"}},
    "Pathwise": {"class_path": "Pathwise"},
    "REINFORCE": {"class_path": "REINFORCE", "init_args": {"baseline": {"class_path": "NoBaseline"}}},
    "REINFORCE-MovingAverage": {
        "class_path": "REINFORCE",
        "init_args": {"baseline": {"class_path": "MovingAverage"}},
    },
}


SERIES = ("StochasticBackprop-N4", "StochasticBackprop-N8")
JUMP = "StochasticBackprop-jump"

METRICS = ("elbo", "mean_elbo", "accuracy", "log_variance_loc", "log_variance_scale")

LABELS = {
    "elbo": "ELBO, whole data (nats)",
    "accuracy": "accuracy, whole data",
    "log_variance_loc": "log-variance of the gradient in μ",
    "log_variance_scale": "log-variance of the gradient in log b",
}
"""Panels of the figure."""

VARIANCES = {"log-variance in μ": "log_variance_loc", "log-variance in log b": "log_variance_scale"}


def _figures(rows: Sequence[Row], name: str) -> dict[str, Seeds | None]:
    of_it = [row for row in rows if row["settings"]["estimator"] == name]
    means = tuple(math.fsum(curve["value"]) / len(curve["value"]) for curve in curves_of(of_it, "elbo"))
    figures = {metric: seeds(of_it, metric) for metric in METRICS}
    return figures | {"mean_elbo": Seeds(means) if means else None}


def _ahead(
    names: Sequence[str], leave_out: Sequence[str], metrics: Mapping[str, str]
) -> Callable[[Sequence[Row]], Iterator[Finding]]:
    """Judge whether estimators have the highest ELBO over training, or the lowest variance."""

    def judge(rows: Sequence[Row]) -> Iterator[Finding]:
        for label, metric in metrics.items() if rows else ():
            figures = {name: _figures(rows, name)[metric] for name in ESTIMATORS if name not in leave_out}
            state, text = extreme(figures, names, highest=metric == "mean_elbo")
            yield Finding(label, ", ".join(names), state, text)

    return judge


def _truncation(rows: Sequence[Row]) -> Iterator[Finding]:
    four, eight = (_figures(rows, name)["elbo"] for name in SERIES)
    if four is None or eight is None:
        yield Finding("", "N = 4 against N = 8", "not run")
        return
    difference = Difference(four, eight)
    state: State = "holds" if abs(difference.value) < 1 else "does not hold"
    yield Finding("", "", state, f"the final ELBO with N = 4 minus that with N = 8 is {difference} nats")


CLAIMS = (
    Claim(
        "Does stochastic backpropagation converge faster in Bayesian logistic regression?",
        "It converges faster than the considered estimators (here: N = 4 and 8, by the mean ELBO over training).",
        "Echraibi et al. (2020), section 6.2",
        _ahead(SERIES, [JUMP], {"mean ELBO over training": "mean_elbo"}),
    ),
    Claim(
        "Is its variance there lower?",
        "The variance is significantly lower (here: N = 4 and 8, at the end of training).",
        "Echraibi et al. (2020), section 6.2",
        _ahead(SERIES, [JUMP], VARIANCES),
    ),
    Claim(
        "Does it matter there where the series is truncated?",
        "The truncation level has little effect on the outcome (here: less than a nat of the final ELBO).",
        "Echraibi et al. (2020), section 6.2",
        _truncation,
        denied=True,
    ),
    Claim(
        "Is the jump form there ahead of pathwise gradient and score function?",
        "It has a higher mean ELBO over training, and less variance at the end.",
        None,
        _ahead([JUMP], SERIES, {"mean ELBO over training": "mean_elbo", **VARIANCES}),
    ),
)


class Regression(FitExperiment):
    """Bayesian logistic regression of the breast cancer data: Echraibi et al. (2020), section 6.2, Figure 3."""

    name = "regression"
    summary = (
        "Bayesian logistic regression with Laplace priors, breast cancer data: Echraibi et al. (2020), section 6.2."
    )
    claims = CLAIMS
    axes: ClassVar[dict[str, Axis]] = {
        "epochs": Axis((300,), (2,), "passes over the training examples (the paper does not say)"),
        "estimator": Axis(tuple(ESTIMATORS), tuple(ESTIMATORS), "estimator", tuple(ESTIMATORS)),
        "seed": Axis((0, 1, 2, 3, 4), (0,), "seed of the noise; the split of the data is the same for all"),
    }
    checkpoint_every: ClassVar[int] = 30
    curve_names: ClassVar[dict[str, str]] = {
        "whole/elbo": "elbo",
        "whole/accuracy": "accuracy",
        "gradient/loc/log_variance": "log_variance_loc",
        "gradient/log_scale/log_variance": "log_variance_scale",
    }

    def config(self, settings: Mapping[str, Value]) -> str:
        """Return the file of the regression."""
        return "regression.yaml"

    def changes(self, settings: Mapping[str, Value], data_root: str) -> Settings:
        """Return estimator, budget and what is measured, at the start of every third epoch."""
        quick = bool(settings.get("quick"))
        estimator = ESTIMATORS[str(settings["estimator"])]
        every = 1 if quick else 3
        variance = {"num_samples": 10, "every_n_steps": 8 * every}
        return {
            "seed_everything": settings["seed"],
            "trainer": {
                "max_epochs": settings["epochs"],
                "check_val_every_n_epoch": every,
                "log_every_n_steps": 8,
                "num_sanity_val_steps": 0,
                "callbacks": [{"class_path": "lightning_estimators.callbacks.GradientVariance", "init_args": variance}],
            },
            "model": {
                "init_args": {
                    "estimator": {**estimator, "init_args": {**estimator.get("init_args", {}), "num_samples": 50}},
                    "eval_samples": 100 if quick else 1000,
                }
            },
            "data": {"init_args": {"eval_batch_size": 569}},
        }

    def protocol(self, settings: Mapping[str, Value]) -> dict[str, Value]:
        """Return what the figures depend on besides the settings."""
        return {
            "batch": 64,
            "samples": 50,
            "optimizer": "Adam, lr 1e-3, betas .9 and .999",
            "data": "455 training examples of 569, split by seed 0, features standardised (our choices)",
            "intercept": "none",
            "start": "locations 0, scales 0.1 (our choice), logarithms of scales are learned",
            "ELBO, accuracy": f"of all 569 examples, {100 if settings.get('quick') else 1000} draws of the weights",
            "log-variance": "natural log of the variance of an entry of the gradient of the negative ELBO of the "
            "training set, 10 fresh estimates; at the end: of the mean variance over the last tenth",
        }

    def evaluate(self, cli: EstimatorCLI, settings: Mapping[str, Value]) -> dict[str, float]:
        """Return ELBO and accuracy of the whole data, and variances at the end."""
        (_, tested) = cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
        logged = logged_curves(cli.trainer)
        return {
            "elbo": tested["whole/elbo"],
            "accuracy": tested["whole/accuracy"],
            "log_variance_loc": late_log_mean(logged["gradient/loc/log_variance"]),
            "log_variance_scale": late_log_mean(logged["gradient/log_scale/log_variance"]),
        }

    def report(self, rows: Sequence[Row]) -> list[str]:
        """Return the table."""
        lines: list[str] = []
        for (epochs,), group in grouped(rows, "epochs").items():
            found = {name: _figures(group, name) for name in ESTIMATORS}
            head = (f"{epochs} epochs", "seeds", "ELBO", "ELBO, mean over training", "accuracy", "log-variance in μ",
                    "log-variance in log b")  # fmt: skip
            body = [
                (name, str(part["elbo"].n), *(stated(part[metric], 5) for metric in METRICS))
                for name, part in found.items()
                if part["elbo"] is not None
            ]
            lines += table(head, body)
        return lines

    def figures(self, rows: Sequence[Row], folder: Path) -> list[Path]:
        """Draw ELBO, variances and accuracy."""
        files = []
        for (epochs,), group in grouped(rows, "epochs").items():
            by = grouped(group, "estimator")
            panels = [
                Panel("", "step", label, {name: curves_of(by.get((name,), []), curve) for name in ESTIMATORS})
                for curve, label in LABELS.items()
            ]
            files.append(draw(panels, folder / f"regression_{epochs}.png", columns=2))
        return files
