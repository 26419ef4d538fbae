"""Discrete latents under images: the image experiments of Grathwohl et al. (2018) and Echraibi et al. (2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from benchmarks import discrete_report
from benchmarks.discrete_claims import JUDGES, READINGS
from benchmarks.experiment import Row, Value
from benchmarks.fit_experiment import FitExperiment, Settings, late_log_mean, logged_curves
from lightning_estimators.cli import EstimatorCLI
from lightning_estimators.datamodules.batches import Batches

__all__ = ["Discrete", "TrainELBO"]


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
    judges = JUDGES
    readings = READINGS

    def is_possible(self, settings: Mapping[str, Value]) -> bool:
        """Return whether the estimator takes so many samples: only the exact rule is run with several."""
        return settings["samples"] == 1 or settings["estimator"] == "StochasticBackprop"

    def estimator(self, settings: Mapping[str, Value]) -> Settings:
        """Return the configuration of the estimator, with its number of samples."""
        named = super().estimator(settings)
        return named | {"init_args": named["init_args"] | {"num_samples": settings["samples"]}}

    def worked_out(self, settings: Mapping[str, Value], data_root: str) -> dict[str, Any]:
        """Return the learning rate of the estimator's own parameters, and the arguments of the data."""
        files = {"root": data_root, "batch_size": 100, "binarization": "static"}
        data = {} if settings["data"] == "Digits" else files
        return {"surrogate_lr": 10 * float(settings["lr"]), "data_arguments": data}

    def changes(self, settings: Mapping[str, Value], data_root: str) -> Settings:
        """Return what differs from the configuration; in a quick run, the model is tiny too."""
        changes = super().changes(settings, data_root)
        if settings.get("quick"):
            latents = [6, 5] if settings["model"] == "bernoulli_two_layer" else [6]
            changes["model"]["init_args"] |= {"num_latents": latents, "num_categories": 3}
        return changes

    def evaluate(self, cli: EstimatorCLI, settings: Mapping[str, Value]) -> dict[str, float]:
        """Return bounds on training and test images, and variances at the end of training."""
        (tested,) = cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
        logged, names = logged_curves(cli.trainer), self.description["curves"]
        variances = {name: late_log_mean(logged[key]) for key, name in names.items() if key.endswith("log_variance")}
        return {
            "train_elbo": train_elbo(cli.trainer, cli.model, None, seed=int(settings["seed"])),
            "val_elbo": -logged["val/loss"]["value"][-1],
            "test_elbo": tested["test/elbo"],
            "test_bound": tested["test/bound"],
        } | variances

    def report(self, rows: Sequence[Row]) -> list[str]:
        """Return a table for each model, and one of the protocols."""
        settings = discrete_report.settings_of(rows)
        lines: list[str] = []
        for model in discrete_report.MODELS:
            if of_model := [setting for setting in settings if setting.model == model]:
                lines += discrete_report.lines_of(model, of_model)
        if lines:
            lines += ["\n### Protocols", *discrete_report.protocols(settings)]
            found = {(row["environment"]["threads"], row["environment"]["processor"]) for row in rows}
            told = [f"{threads} thread{'s' if threads != 1 else ''} of {name}" for threads, name in sorted(found)]
            lines.append(f"Times are with {', or '.join(told)}.")
        return lines

    def figures(self, rows: Sequence[Row], folder: Path) -> list[Path]:
        """Draw a figure for each model, data set and budget."""
        return discrete_report.figures(rows, folder)
