"""The command `lightning-estimators`: Lightning's command line with this package's plug-ins known by name."""

from __future__ import annotations

import os
import sys
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any, Union, get_args

import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

# Imports are the registry: whatever is imported has a short name on the command line.
from lightning_estimators import baselines, networks  # noqa: F401
from lightning_estimators.callbacks import Reconstructions
from lightning_estimators.commandline.checkpoints import checkpoint_path, saved_configuration
from lightning_estimators.commandline.overrides import Overrides
from lightning_estimators.commandline.parser import Parser
from lightning_estimators.commandline.refusals import is_refusal, root_cause
from lightning_estimators.commandline.settings import (
    Settings,
    find_class,
    for_named_classes,
    peek,
    rewrite_files,
    same_class,
)
from lightning_estimators.configurable import import_path
from lightning_estimators.datamodules import Digits
from lightning_estimators.estimators import REBAR
from lightning_estimators.modules import DiscreteLatentModel, EstimatorModule
from lightning_estimators.modules.recorded import CHECKPOINT_KEY

__all__ = ["EstimatorCLI", "RunConfig", "main"]

_REBAR = {"class_path": import_path(REBAR)}
_ADAM = "torch.optim.Adam"

DEFAULT_JOB: dict[str, Any] = {
    "model": {
        "class_path": import_path(DiscreteLatentModel),
        "init_args": {
            "estimator": _REBAR,
            "num_latents": [64],
            "optimizer": {"class_path": _ADAM, "init_args": {"lr": 1e-2}},
            "surrogate_optimizer": {"class_path": _ADAM, "init_args": {"lr": 1e-1}},
        },
    },
    "data": {"class_path": import_path(Digits), "init_args": {"binarization": "threshold"}},
}
"""What runs when neither model nor data are named: configs/digits.yaml, which an installed package does not have."""

DEFAULT_CLASSES: dict[str, Any] = {
    "model": {"class_path": import_path(DiscreteLatentModel), "init_args": {"estimator": _REBAR}},
    "data": {"class_path": import_path(Digits), "init_args": {}},
}
"""What stands in for the other when one of them is named: the class with its own defaults."""


class RunConfig(SaveConfigCallback):
    """Writes the configuration of the run where its logs go, and into its checkpoints.

    Without a logger there is no folder of the run, and no file is written. From a checkpoint, `validate`, `test`,
    `predict` and a resumed `fit` take the model, the data and the seed, unless the command line says otherwise.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write config.yaml."""
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Settings) -> None:
        """Keep the options of model and data, and the seed."""
        checkpoint[CHECKPOINT_KEY] = dict(self._kept)

    @cached_property
    def _kept(self) -> Settings:
        # Once per run: writing the options down takes longer than an epoch of a small job.
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        names = ("model", "data", "seed_everything")
        return {name: config[name] for name in names if config.get(name) is not None}


class EstimatorCLI(LightningCLI):
    """Trains, validates, tests and predicts from the command line; see `main`.

    What differs from Lightning's own: defaults that make a complete job; checkpoints, which are found in a new process
    and of which model, data and seed are defaults that configuration files and options override; a log folder that
    cannot be written is refused before training; messages. `EstimatorCLI(args=[...])` keeps `trainer`, `model` and
    `datamodule` for a notebook to look at.

    Args:
        args: Like the words of the command line; None takes those of the process.
    """

    def __init__(self, args: ArgsType = None) -> None:
        super().__init__(
            EstimatorModule,
            LightningDataModule,
            save_config_callback=RunConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"max_epochs": 200, "log_every_n_steps": 10},  # Digits: 2800 steps, 14 to an epoch
            seed_everything_default=0,  # a rerun, and a resumed run, draw the same noise
            parser_kwargs={"prog": "lightning-estimators", "allow_abbrev": False}
            | {name: {"allow_abbrev": False} for name in self.subcommands()},
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=args,
            auto_configure_optimizers=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the checkpoint's options; tell models that ask for it the shape of the images."""
        parser.add_class_arguments(ModelCheckpoint, "checkpoint", fail_untyped=False, sub_configs=True)
        parser.set_defaults({"checkpoint.save_last": True})
        for action in parser._actions:
            # `Optional[Union[int, float]]` is `Optional[Union[float, int]]` if somebody wrote that first, and 1 batch
            # then becomes 1.0, all batches.
            if set(get_args(getattr(action, "_typehint", None))) == {int, float, type(None)}:
                action._typehint = Union[int, float, None]  # type: ignore[attr-defined]  # noqa: UP007
        parser.link_arguments("data.image_shape", "model.init_args.image_shape", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse with defaults < checkpoint < configuration files < options."""
        given = sys.argv[1:] if args is None else args
        self._overrides: Overrides | None = None
        subcommand, settings = peek(given, tuple(self.subcommands()))
        if subcommand is not None:
            own = self._subcommand_parsers[subcommand]
            try:
                path = checkpoint_path(settings)
                saved = saved_configuration(path) if path is not None and os.path.isfile(path) else {}
            except (OSError, ValueError) as error:
                own.error(str(error))
            named = settings.get("model") is not None or settings.get("data") is not None
            defaults = (DEFAULT_CLASSES if named else DEFAULT_JOB) | saved
            for name in ("model", "data"):
                default = for_named_classes({name: defaults[name]}, settings, keep=False)[name]
                # What the data tells the model is not an option.
                told = ("image_shape",) if name == "model" else ()
                default["init_args"] = {k: v for k, v in default["init_args"].items() if k not in told}
                if settings.get(name) is None or same_class(settings[name], default["class_path"]):
                    own.set_defaults({name: default})
            given = rewrite_files(given, settings)
            if "seed_everything" in saved:
                own.set_defaults({"seed_everything": saved["seed_everything"]})
        self.config = parser.parse_object(given) if isinstance(given, (dict, Namespace)) else parser.parse_args(given)
        if subcommand is None:
            return
        self.config[subcommand]["ckpt_path"] = path
        if subcommand == "fit" and "model" in saved:
            wanted = yaml.safe_load(own.dump(self.config[subcommand], skip_none=False))["model"]
            if wanted["class_path"] == saved["model"]["class_path"]:
                try:
                    self._overrides = Overrides(saved["model"]["init_args"], wanted["init_args"])
                except ValueError as error:
                    own.error(str(error))
        data = self.config[subcommand].get("data.class_path")
        if "model.image_shape" in settings and hasattr(find_class(data), "image_shape"):
            own.error(f"--model.image_shape: {data} says what it is; leave it out.")

    def _parse_ckpt_path(self) -> None:
        """Do nothing: here Lightning lets the checkpoint override the command line."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer with the default logger and callbacks, once its folders can be written."""
        settings = self._get(self.config_init, "trainer")
        if self.subcommand != "fit" and not self._get(self.config, "ckpt_path"):
            rank_zero_warn(f"`{self.subcommand}` without --ckpt_path sees a model that was never trained.")
        root = settings["default_root_dir"] or os.getcwd()
        logger = settings["logger"]
        if not settings["barebones"] and (logger is None or logger is True):
            # As Lightning's default, but for a metric named hp_metric of which nobody asked.
            logger = TensorBoardLogger(root, version=SLURMEnvironment.job_id(), default_hp_metric=False)
        loggers = [one for one in (logger if isinstance(logger, list) else [logger]) if isinstance(one, Logger)]
        callbacks = settings["callbacks"] or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        # Images by default, unless there are some already, or an empty list asks for nothing.
        if settings["callbacks"] != [] and not any(isinstance(callback, Reconstructions) for callback in callbacks):
            draws = all(callable(getattr(self.model, name, None)) for name in ("reconstruct", "sample_prior"))
            tensorboard = any(isinstance(one, TensorBoardLogger) for one in loggers)
            if tensorboard and draws and hasattr(self.datamodule, "image_shape"):
                callbacks.append(Reconstructions(every_n_epochs=10))
        if self._overrides is not None:
            callbacks.append(self._overrides)
        checkpoint = self._get(self.config_init, "checkpoint")
        saves = settings["enable_checkpointing"] is not False and not settings["barebones"]
        if saves and not any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
            callbacks.append(checkpoint)
        if not settings["fast_dev_run"]:
            folders = {one.save_dir for one in loggers}
            if saves and self.subcommand == "fit":
                folders.add(checkpoint.dirpath or (None if loggers else root))
            for folder in sorted(str(folder) for folder in folders if folder is not None):
                self._check_writable(folder)
        return super().instantiate_trainer(logger=logger, callbacks=callbacks, **kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Run `Trainer.predict` and keep what it returns beside the logs, as predictions.pt."""
        predictions = self.trainer.predict(**kwargs)
        if predictions and self.trainer.loggers and self.trainer.log_dir is not None:
            rank = f"_rank{self.trainer.global_rank}" if self.trainer.world_size > 1 else ""
            path = Path(self.trainer.log_dir, f"predictions{rank}.pt")
            torch.save(predictions, path)
            rank_zero_info(f"Predictions, one entry per batch, are in {path}")

    def _check_writable(self, folder: str) -> None:
        if "://" in folder:
            return
        try:
            os.makedirs(folder, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            self._parser(self.subcommand).error(
                f"the folder for logs and checkpoints cannot be written: {folder} ({error.strerror}). Give another "
                "with --trainer.default_root_dir, or write none with --trainer.logger false "
                "--trainer.enable_checkpointing false."
            )


def main(args: ArgsType = None) -> None:
    """Run the command line: `lightning-estimators fit|validate|test|predict [options]`.

    `fit` without options trains a sigmoid belief network with REBAR on scikit-learn's digits; `test --ckpt_path last`
    in the same folder bounds the likelihood it reached. Every class of this package, of torch's optimizers and of
    Lightning's callbacks and loggers has a short name (`--model.estimator RELAX --model.estimator.temperature 0.3`);
    others are named by their import path (`--model my_project.MyModel`), which may be a file in the current folder.

    Args:
        args: Like the words of the command line, for notebooks and tests; None takes those of the process.

    Raises:
        SystemExit: With status 2, after one message, if what was asked for cannot be done.
    """
    if args is None and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # the console script, unlike `python -m`, does not look there
    try:
        EstimatorCLI(args)
    except Exception as error:
        root = root_cause(error)
        if os.environ.get("JSONARGPARSE_DEBUG"):
            raise
        if not is_refusal(root):
            raise root from None
        print(f"error: {root}\n(JSONARGPARSE_DEBUG=1 shows where it was raised.)", file=sys.stderr)
        raise SystemExit(2) from error
