"""Bayesian logistic regression: Figure 3 of Echraibi et al. (2020)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.comparison import (
    Difference,
    Finding,
    Judge,
    Metric,
    ahead,
    grouped,
    mean_of,
    of_estimator,
    seeds,
    stated,
    table,
)
from benchmarks.experiment import Row, Value
from benchmarks.figures import Panel, curves_by_estimator, draw
from benchmarks.fit_experiment import FitExperiment, late_log_mean, logged_curves
from lightning_estimators.cli import EstimatorCLI

__all__ = ["Regression"]

SERIES, JUMP = ("StochasticBackprop-N4", "StochasticBackprop-N8"), "StochasticBackprop-jump"
RIVALS = ("Pathwise", "REINFORCE", "REINFORCE-MovingAverage")
COLUMNS: dict[str, Metric] = {
    "ELBO": "elbo",
    "ELBO, mean over training": mean_of("elbo"),
    "accuracy": "accuracy",
    "log-variance in μ": "log_variance_loc",
    "log-variance in log b": "log_variance_scale",
}
SPEED: dict[str, Metric] = {"mean ELBO over training": mean_of("elbo")}
VARIANCES: dict[str, Metric] = {label: metric for label, metric in COLUMNS.items() if label.startswith("log-variance")}
PANELS = {
    "elbo": "ELBO, whole data (nats)",
    "accuracy": "accuracy, whole data",
    "log_variance_loc": "log-variance of the gradient in μ",
    "log_variance_scale": "log-variance of the gradient in log b",
}


def _truncation(rows: Sequence[Row]) -> Iterator[Finding]:
    four, eight = (seeds(of_estimator(rows, name), "elbo") for name in SERIES)
    if four is None or eight is None:
        yield Finding("", "", "not run")
        return
    gap = Difference(four, eight)
    text = f"the final ELBO with N = 4 minus that with N = 8 is {gap} nats"
    yield Finding("", "", "holds" if abs(gap.value) < 1 else "does not hold", text)


def _jump_is_ahead(rows: Sequence[Row]) -> Iterator[Finding]:
    yield from ahead([JUMP], RIVALS, SPEED, highest=True)(rows)
    yield from ahead([JUMP], RIVALS, VARIANCES)(rows)


class Regression(FitExperiment):
    """Bayesian logistic regression of the breast cancer data: Echraibi et al. (2020), section 6.2, Figure 3."""

    name = "regression"
    judges: ClassVar[Mapping[str, Judge]] = {
        "series_is_fastest": ahead(SERIES, RIVALS, SPEED, highest=True),
        "series_varies_least": ahead(SERIES, RIVALS, VARIANCES),
        "truncation_matters_little": _truncation,
        "jump_is_ahead": _jump_is_ahead,
    }
    checkpoint_every = 30

    def worked_out(self, settings: Mapping[str, Value], data_root: str) -> dict[str, Any]:
        """Return the steps between two measurements: an epoch has eight."""
        return {"every_n_steps": 8 * self.sizes(settings)["every"]}

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
            body = []
            for name in self.estimators:
                part = of_estimator(group, name)
                if elbo := seeds(part, "elbo"):
                    body.append([name, str(elbo.n), *(stated(seeds(part, metric), 5) for metric in COLUMNS.values())])
            lines += table([f"{epochs} epochs", "seeds", *COLUMNS], body)
        return lines

    def figures(self, rows: Sequence[Row], folder: Path) -> list[Path]:
        """Draw ELBO, variances and accuracy."""
        files = []
        for (epochs,), group in grouped(rows, "epochs").items():
            panels = [
                Panel("", "step", label, curves_by_estimator(group, self.estimators, curve))
                for curve, label in PANELS.items()
            ]
            files.append(draw(panels, folder / f"regression_{epochs}.png", columns=2))
        return files
