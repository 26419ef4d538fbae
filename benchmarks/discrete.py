"""Discrete latents under images: the image experiments of Grathwohl et al. (2018) and Echraibi et al. (2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from benchmarks import discrete_report
from benchmarks.comparison import late_log_mean
from benchmarks.discrete_claims import CLAIMS
from benchmarks.experiment import Axis, Row, Value
from benchmarks.fit_experiment import FitExperiment, Settings, logged_curves
from lightning_estimators.cli import EstimatorCLI
from lightning_estimators.datamodules.batches import Batches

__all__ = ["Discrete", "TrainELBO"]

ESTIMATORS: dict[str, Settings] = {
    "REINFORCE": {"class_path": "REINFORCE", "init_args": {"baseline": {"class_path": "LearnedBaseline"}}},
    "Concrete": {"class_path": "Concrete"},
    "REBAR": {"class_path": "REBAR"},
    "RELAX": {"class_path": "RELAX"},
    "RelaxedREBAR": {"class_path": "RelaxedREBAR"},
    "StochasticBackprop": {"class_path": "StochasticBackprop"},
}


class TrainELBO(pl.Callback):
    """Logs `train/elbo` after each epoch, at hard samples of the latents also if the estimator relaxes them.

    Args:
        num_images: Number of training images, of which the first are taken.
    """

    def __init__(self, num_images: int = 10_000) -> None:
        self.num_images = num_images

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the ELBO and log it."""
        elbo = train_elbo(trainer, pl_module, self.num_images, seed=trainer.current_epoch)
        for logger in trainer.loggers:
            logger.log_metrics({"train/elbo": elbo}, step=trainer.global_step)


def train_elbo(trainer: pl.Trainer, module: Any, num_images: int | None, seed: int) -> float:
    """Return the ELBO of training images, with one hard sample of the latents for each image."""
    data = cast(Any, trainer).datamodule
    batches = Batches(data.splits.train[:num_images], 100)
    with isolate_rng(include_cuda=module.device.type == "cuda"):
        torch.manual_seed(seed)
        total = sum(module.bounds(batch.to(module.device), 1)[0].double().sum() for batch in batches)
    return float(total) / batches.count


class Discrete(FitExperiment):
    """Section 5.2 of Grathwohl et al. (2018) and appendix B of Echraibi et al. (2020)."""

    name = "discrete"
    summary = "Sigmoid belief networks and discrete VAEs on MNIST and Omniglot."
    claims = CLAIMS
    axes: ClassVar[dict[str, Axis]] = {
        "model": Axis(
            tuple(discrete_report.MODELS),
            ("bernoulli_linear", "categorical_nonlinear"),
            "model, of the configuration mnist_MODEL",
            tuple(discrete_report.MODELS),
        ),
        "data": Axis(("MNIST", "Omniglot"), ("Digits",), "data set", ("MNIST", "Omniglot", "Digits")),
        "lr": Axis((1e-4,), (1e-3,), "Adam's learning rate; ten times that for the estimator's own parameters"),
        "epochs": Axis((500,), (2,), "passes over the training images"),
        "estimator": Axis(tuple(ESTIMATORS), tuple(ESTIMATORS), "estimator", tuple(ESTIMATORS)),
        "samples": Axis((1, 5, 10), (1, 5), "samples per image; more than one for StochasticBackprop only"),
        "seed": Axis((0, 1, 2, 3, 4), (0,), "seed of weights and noise"),
    }
    curve_names: ClassVar[dict[str, str]] = {
        "train/elbo": "train_elbo",
        "val/loss": "val_negative_elbo",
        "gradient/encoder/log_variance": "log_variance_encoder",
        "gradient/decoder/log_variance": "log_variance_decoder",
        "adam/encoder/log_variance": "log_variance_encoder_adam",
        "adam/decoder/log_variance": "log_variance_decoder_adam",
    }

    def is_possible(self, settings: Mapping[str, Value]) -> bool:
        """Return whether the estimator takes so many samples: only the exact rule is run with several."""
        return settings["samples"] == 1 or settings["estimator"] == "StochasticBackprop"

    def config(self, settings: Mapping[str, Value]) -> str:
        """Return the file of the model."""
        return f"mnist_{settings['model']}.yaml"

    def changes(self, settings: Mapping[str, Value], data_root: str) -> Settings:
        """Return estimator, learning rates, budget, data and what is measured."""
        quick, lr = bool(settings.get("quick")), float(settings["lr"])
        estimator = dict(ESTIMATORS[str(settings["estimator"])])
        estimator["init_args"] = {**estimator.get("init_args", {}), "num_samples": settings["samples"]}
        callbacks = "lightning_estimators.callbacks.GradientVariance"
        every = {"every_n_steps": 10 if quick else 250}
        model: Settings = {
            "estimator": estimator,
            "optimizer": {"init_args": {"lr": lr}},
            "surrogate_optimizer": {"init_args": {"lr": 10 * lr}},
            "test_samples": 5 if quick else 200,
        }
        if quick:
            model["num_latents"] = [6, 5] if settings["model"] == "bernoulli_two_layer" else [6]
            model["num_categories"] = 3
        data: Settings = {"class_path": f"lightning_estimators.datamodules.{settings['data']}"}
        if settings["data"] != "Digits":
            data["init_args"] = {"root": data_root, "batch_size": 100, "binarization": "static"}
        return {
            "seed_everything": settings["seed"],
            "trainer": {
                "max_epochs": settings["epochs"],
                "limit_train_batches": 5 if quick else None,
                "log_every_n_steps": 5 if quick else 50,
                "callbacks": [
                    {"class_path": callbacks, "init_args": {"method": "fresh", "num_samples": 10, **every}},
                    {"class_path": callbacks, "init_args": {"method": "moments", "prefix": "adam", **every}},
                    {"class_path": "benchmarks.discrete.TrainELBO"},
                ],
            },
            "model": {"init_args": model},
            "data": data,
        }

    def protocol(self, settings: Mapping[str, Value]) -> dict[str, Value]:
        """Return what the figures depend on besides the settings."""
        return {
            "batch": 100,
            "optimizer": "Adam, betas .9 and .999",
            "surrogate lr": "10 times lr",
            "prior": "learned",
            "KL": "closed form",
            "binarization": "static, drawn once with seed 0",
            "train ELBO": "all training images, 1 hard sample each, after training",
            "test ELBO": "mean over the samples of the bound",
            "test bound": f"importance sampling from q, {5 if settings.get('quick') else 200} samples",
            "log-variance": "natural log of the variance of an entry of the encoder's gradient, batch of 100: 10 fresh "
            "estimates (or Adam's moments), mean over the last tenth of the measurements, one every 250 steps",
        }

    def evaluate(self, cli: EstimatorCLI, settings: Mapping[str, Value]) -> dict[str, float]:
        """Return bounds on training and test images, and variances at the end of training."""
        (tested,) = cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
        logged = logged_curves(cli.trainer)
        metrics = {
            "train_elbo": train_elbo(cli.trainer, cli.model, None, seed=int(settings["seed"])),
            "val_elbo": -logged["val/loss"]["value"][-1],
            "test_elbo": tested["test/elbo"],
            "test_bound": tested["test/bound"],
        }
        for key, name in self.curve_names.items():
            if key.endswith("log_variance"):
                metrics[name] = late_log_mean(logged[key])
        return metrics

    def report(self, rows: Sequence[Row]) -> list[str]:
        """Return a table for each model, and one of the protocols."""
        settings = discrete_report.settings_of(rows)
        lines: list[str] = []
        for model in discrete_report.MODELS:
            if of_model := [setting for setting in settings if setting.model == model]:
                lines += discrete_report.lines_of(model, of_model)
        if lines:
            lines += ["\n### Protocols", *discrete_report.protocols(settings), discrete_report.machines(rows)]
        return lines

    def figures(self, rows: Sequence[Row], folder: Path) -> list[Path]:
        """Draw a figure for each model, data set and budget."""
        return discrete_report.figures(rows, folder)
