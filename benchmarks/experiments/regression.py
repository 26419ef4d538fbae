"""Bayesian logistic regression: Figure 3 of the second paper."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from benchmarks.charts import Panel, curves_of, draw
from benchmarks.experiment import Axis, Context, Row, Value
from benchmarks.fits import FitExperiment, Settings
from benchmarks.progress import logged_curves
from benchmarks.seeds import Difference, Seeds
from benchmarks.summary import Answer, extreme, failures, grouped, late_log_mean, quoted, seeds, stated, table
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


class Regression(FitExperiment):
    """Second paper, 6.2, Figure 3."""

    name = "regression"
    summary = "Bayesian logistic regression with Laplace priors, breast cancer data (second paper 6.2, Figure 3)."
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

    def changes(self, settings: Mapping[str, Value], context: Context) -> Settings:
        """Return estimator, budget and what is measured: every third epoch, at the start of it."""
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
        """Return the table, and what the paper says of it."""
        lines = []
        for (epochs,), group in grouped(rows, "epochs").items():
            by = grouped(group, "estimator")
            figures = {name: _figures(by.get((name,), [])) for name in ESTIMATORS}
            lines.append(f"\n{epochs} epochs; ELBO in nats and accuracy of the whole data, log-variance at the end:")
            head = ("estimator", "ELBO", "mean ELBO of training", "accuracy", "log-variance, μ", "log-variance, log b")
            body = [
                (name, *(stated(part[metric], 5) for metric in METRICS), str(part["elbo"].n))
                for name, part in figures.items()
                if part["elbo"] is not None
            ]
            lines += [*table((*head, "n"), body), *_claims(figures)]
        return [*(lines or ["No rows yet."]), *failures(rows)]

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


METRICS = ("elbo", "mean_elbo", "accuracy", "log_variance_loc", "log_variance_scale")

LABELS = {
    "elbo": "ELBO, whole data (nats)",
    "accuracy": "accuracy, whole data",
    "log_variance_loc": "log-variance of the gradient in μ",
    "log_variance_scale": "log-variance of the gradient in log b",
}

Figures = dict[str, Seeds | None]

SERIES = ("StochasticBackprop-N4", "StochasticBackprop-N8")


def _figures(rows: Sequence[Row]) -> Figures:
    means = tuple(math.fsum(curve["value"]) / len(curve["value"]) for curve in curves_of(rows, "elbo"))
    figures = {metric: seeds(rows, metric) for metric in METRICS}
    return figures | {"mean_elbo": Seeds(means) if means else None}


def _claims(figures: Mapping[str, Figures]) -> list[str]:
    def column(metric: str, leave: Sequence[str]) -> dict[str, Seeds | None]:
        return {name: part[metric] for name, part in figures.items() if name not in leave}

    jump = "StochasticBackprop-jump"
    four, eight = (figures[name]["elbo"] for name in SERIES)
    little = Answer("not measured")
    if four is not None and eight is not None:
        difference = Difference(four, eight)
        little = Answer("yes" if abs(difference.value) < 1 else "no", f"{difference.value:+.2f} nats, N = 4 less N = 8")
    variances = {
        label: extreme(column(metric, [jump]), SERIES)
        for label, metric in (("in μ", "log_variance_loc"), ("in log b", "log_variance_scale"))
    }
    ours = {
        label: extreme(column(metric, SERIES), [jump], highest=highest)
        for label, metric, highest in (
            ("mean ELBO of training", "mean_elbo", True),
            ("log-variance in μ", "log_variance_loc", False),
            ("log-variance in log b", "log_variance_scale", False),
        )
    }
    return [
        quoted(
            "The stochastic backpropagation estimator converges faster than the considered estimators",
            "second paper, 6.2",
            "By the ELBO, mean over training, N = 4 and 8.",
            {"": extreme(column("mean_elbo", [jump]), SERIES, highest=True)},
        ),
        quoted(
            "the variance is significantly lower",
            "second paper, 6.2",
            "By the log-variance at the end, N = 4 and 8.",
            variances,
        ),
        quoted(
            "the truncation level of the infinite series for the scale parameter has little effect on the outcome",
            "second paper, 6.2",
            "By the ELBO at the end: less than a nat.",
            {"": little},
        ),
        quoted(
            "The jump form, too, is ahead of pathwise gradients and score function",
            "ours",
            "By the mean ELBO of training, and the log-variances at the end.",
            ours,
        ),
    ]
