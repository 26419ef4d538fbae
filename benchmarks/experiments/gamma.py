"""Gamma variables: Figures 1 and 2 of the second paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch

from benchmarks.experiment import Axis, Context, Row, Value
from benchmarks.fits import FitExperiment, Settings
from benchmarks.progress import CurveLogger
from benchmarks.summary import late_log_mean
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
        logged = next(logger for logger in cli.trainer.loggers if isinstance(logger, CurveLogger)).curves
        loss = float(cli.model.exact_loss())
        losses = logged["toy/loss"]["value"]
        return {
            "loss": loss,
            "loss_per_variable": loss / int(settings["dimension"]),
            "mean_loss_per_variable": sum(losses) / len(losses) / int(settings["dimension"]),
            "log_variance": late_log_mean(logged["toy/log_variance"]),
        }

    def report(self, rows: Sequence[Row]) -> list[str]:
        """Return table and claims."""
        return []
