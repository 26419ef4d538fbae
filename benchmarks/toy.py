"""One Bernoulli variable: Figures 1 and 2 of Grathwohl et al. (2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from benchmarks import toy_report
from benchmarks.comparison import late_log_mean, late_mean
from benchmarks.experiment import Axis, Row, Value
from benchmarks.fit_experiment import FitExperiment, Settings, logged_curves
from lightning_estimators.cli import EstimatorCLI

__all__ = ["Toy"]

ESTIMATORS: dict[str, Settings] = {
    "REINFORCE": {"class_path": "REINFORCE", "init_args": {"baseline": {"class_path": "NoBaseline"}}},
    "Concrete": {"class_path": "Concrete", "init_args": {"temperature": 0.5}},
    "REBAR": {"class_path": "REBAR", "init_args": {"temperature": 0.5, "eta": 1.0}},
    "RELAX": {
        "class_path": "RELAX",
        "init_args": {
            "surrogate": {
                "class_path": "lightning_estimators.networks.Surrogate",
                "init_args": {"hidden": [10], "activation": "tanh", "signed": True},
            }
        },
    },
    "StochasticBackprop": {"class_path": "StochasticBackprop"},
}

RELAXATION = "toy/relaxation at noise u"


class Toy(FitExperiment):
    """The toy experiment of Grathwohl et al. (2018), section 5.1, Figures 1 and 2."""

    name = "toy"
    summary = "One Bernoulli variable b, f(b) = (b - t)²: Grathwohl et al. (2018), section 5.1."
    claims = toy_report.CLAIMS
    axes: ClassVar[dict[str, Axis]] = {
        "target": Axis((0.45, 0.499), (0.45,), "t"),
        "steps": Axis((10_000,), (200,), "optimizer steps, one sample each; a multiple of 100"),
        "lr": Axis((0.01, 0.0), (0.01, 0.0), "Adam's, of θ's logit; 0 keeps θ at 1/2 (REBAR and RELAX only)"),
        "estimator": Axis(tuple(ESTIMATORS), tuple(ESTIMATORS), "estimator", tuple(ESTIMATORS)),
        "seed": Axis((0, 1, 2, 3, 4), (0,), "seed of the surrogate's weights and of the noise"),
    }
    curve_names: ClassVar[dict[str, str]] = {
        "toy/loss": "loss",
        "toy/theta": "theta",
        "toy/log_variance": "log_variance",
        RELAXATION: "relaxation",
    }

    def is_possible(self, settings: Mapping[str, Value]) -> bool:
        """Return whether there is anything to learn: at a fixed θ only control variates learn."""
        return float(settings["lr"]) > 0 or settings["estimator"] in ("REBAR", "RELAX")

    def config(self, settings: Mapping[str, Value]) -> str:
        """Return the file of the toy."""
        return "toy.yaml"

    def changes(self, settings: Mapping[str, Value], data_root: str) -> Settings:
        """Return target, estimator and budget: ten epochs, with a hundred measurements."""
        steps = int(settings["steps"])
        if steps < 100 or steps % 100:
            raise ValueError(f"the toy takes a multiple of 100 steps, got {steps}.")
        return {
            "seed_everything": settings["seed"],
            "trainer": {"max_epochs": 10, "log_every_n_steps": steps // 100, "limit_val_batches": 0},
            "model": {
                "init_args": {
                    "target": settings["target"],
                    "estimator": ESTIMATORS[str(settings["estimator"])],
                    "optimizer": {"init_args": {"lr": settings["lr"]}},
                    "num_draws": 50 if settings.get("quick") else 1000,
                    "figure_every_n_epochs": 0,
                }
            },
            "data": {"init_args": {"num_batches": steps // 10}},
        }

    def protocol(self, settings: Mapping[str, Value]) -> dict[str, Value]:
        """Return what the figures depend on besides the settings."""
        return {
            "batch": 1,
            "θ": "starts at 1/2",
            "optimizer": "Adam, betas .9 and .999",
            "surrogate lr": "0.01, Adam",
            "temperature": "starts at 0.5 (Concrete: fixed; RELAX: starts at 1)",
            "η of REBAR": "starts at 1",
            "surrogate of RELAX": "1-10-1 tanh network of 2z - 1",
            "baseline of REINFORCE": "none",
            "loss": "exact expectation",
            "log-variance": f"natural log of the sample variance of {50 if settings.get('quick') else 1000} fresh "
            "estimates, at a hundredth of the steps; at the end: of the mean variance over the last tenth",
            "wrong sign": "share of fresh estimates whose sign is not the gradient's, over the last tenth",
        }

    def evaluate(self, cli: EstimatorCLI, settings: Mapping[str, Value]) -> dict[str, float]:
        """Return exact loss, θ and the quality of the gradient at the end; keep the relaxation as a curve."""
        logged = logged_curves(cli.trainer)
        model, target = cli.model, float(settings["target"])
        loss = float(model.exact_loss())
        metrics = {
            "loss": loss,
            "excess_loss": loss - min(target, 1 - target) ** 2,
            "theta": float(model.logits.detach().sigmoid().mean()),
            "log_variance": late_log_mean(logged["toy/log_variance"]),
            "wrong_sign": late_mean(logged["toy/angle"]) / 180,
        }
        relaxation = model.relaxation_curve(points=self.curve_points)
        if relaxation is not None:
            u, relaxed, _ = relaxation
            logged[RELAXATION] = {"step": u.tolist(), "value": relaxed.tolist()}
            metrics["rising"] = float((relaxed.diff() > 0).double().mean())
        return metrics

    def report(self, rows: Sequence[Row]) -> list[str]:
        """Return a table of optimization, and one of relaxations at a fixed θ."""
        return toy_report.report(rows)

    def figures(self, rows: Sequence[Row], folder: Path) -> list[Path]:
        """Draw loss, θ, variance and relaxation."""
        return toy_report.figures(rows, folder)
