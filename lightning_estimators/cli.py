"""The command `lightning-estimators`: Lightning's command line with this package's plug-ins known by name."""

from __future__ import annotations

import linecache
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

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
from lightning_estimators.checkpoints import find_checkpoint, saved_configuration
from lightning_estimators.configurable import import_path
from lightning_estimators.datamodules import Digits
from lightning_estimators.estimators import REBAR
from lightning_estimators.modules import DiscreteLatentModel, EstimatorModule
from lightning_estimators.modules.recorded import CHECKPOINT_KEY
from lightning_estimators.parser import Parser, load_class

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

Settings = dict[str, Any]


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
        checkpoint[CHECKPOINT_KEY] = self._kept

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
        parser.link_arguments("data.image_shape", "model.init_args.image_shape", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse with defaults < checkpoint < configuration files < options."""
        given = sys.argv[1:] if args is None else args
        subcommand, settings = _peek(given, tuple(self.subcommands()))
        if subcommand is not None:
            own = self._subcommand_parsers[subcommand]
            try:
                path = _checkpoint_path(settings)
                saved = saved_configuration(path) if path is not None and os.path.isfile(path) else {}
            except (OSError, ValueError) as error:
                own.error(str(error))
            named = settings.get("model") is not None or settings.get("data") is not None
            defaults = (DEFAULT_CLASSES if named else DEFAULT_JOB) | saved
            for name in ("model", "data"):
                default = dict(defaults[name])
                # Options of one class mean nothing to another: a default counts only while its class is not replaced.
                if settings.get(name) is None or _same_class(settings[name], default["class_path"]):
                    # What the data tells the model is not an option.
                    told = ("image_shape",) if name == "model" else ()
                    default["init_args"] = {k: v for k, v in default.get("init_args", {}).items() if k not in told}
                    own.set_defaults({name: default})
            if "seed_everything" in saved:
                own.set_defaults({"seed_everything": saved["seed_everything"]})
        self.config = parser.parse_object(given) if isinstance(given, (dict, Namespace)) else parser.parse_args(given)
        if subcommand is None:
            return
        self.config[subcommand]["ckpt_path"] = path
        data = self.config[subcommand].get("data.class_path")
        if "model.image_shape" in settings and hasattr(load_class(data), "image_shape"):
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
        if logger is None or logger is True:
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
        root = _root(error)
        if os.environ.get("JSONARGPARSE_DEBUG"):
            raise
        if not _is_refusal(root):
            raise root from None
        print(f"error: {root}\n(JSONARGPARSE_DEBUG=1 shows where it was raised.)", file=sys.stderr)
        raise SystemExit(2) from error


def _root(error: BaseException) -> BaseException:
    """The exception of a constructor, which jsonargparse wraps in a listing of all arguments and types."""
    while error.__cause__ is not None and _raised_in(error)[0].startswith("jsonargparse"):
        error = error.__cause__
    return error


def _is_refusal(error: BaseException) -> bool:
    """Whether it was raised on purpose, because of what was asked for; anything else is a bug to be traced."""
    module, line = _raised_in(error)
    refuses = re.match(r"lightning_estimators\.|lightning\.|torch\.optim\.", module)
    mismatch = str(error).startswith("Error(s) in loading state_dict")
    return line.startswith("raise") and (refuses is not None or mismatch)


def _raised_in(error: BaseException) -> tuple[str, str]:
    """Name of the module, and line of code."""
    *_, (frame, number) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", ""), linecache.getline(frame.f_code.co_filename, number).strip()


def _peek(given: Any, subcommands: tuple[str, ...]) -> tuple[str | None, Settings]:
    """Read the few settings that decide on the defaults of all others, by dotted name, the last word winning."""
    settings: Settings = {}
    if isinstance(given, (dict, Namespace)):
        given = given.as_dict() if isinstance(given, Namespace) else given
        subcommand = given.get("subcommand")
        return subcommand, dict(_flatten(given.get(subcommand, {})))
    words = iter(given)
    subcommand = None
    for word in words:
        name, equals, value = str(word).partition("=")
        if subcommand is None and word in subcommands:
            subcommand = word
        if not name.startswith("-"):
            continue
        value = value if equals else next(words, "")
        if name in ("-c", "--config"):
            loaded = _load_yaml(value)
            settings |= dict(_flatten(loaded))
            for inner in subcommands:
                settings |= dict(_flatten(loaded.get(inner) or {})) if inner == (subcommand or inner) else {}
        elif name.startswith("--"):
            settings[name[2:].replace(".init_args.", ".").removesuffix(".class_path")] = value
    return subcommand, settings


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, prefix if key == "init_args" else f"{prefix}{key}.")
        elif key == "class_path":
            yield prefix.removesuffix("."), value
        else:
            yield f"{prefix}{key}", value


def _load_yaml(value: Any) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(Path(value).read_text() if os.path.isfile(value) else value)
    except (OSError, yaml.YAMLError):
        return {}  # the parser will say what is wrong with it
    return loaded if isinstance(loaded, dict) else {}


def _same_class(name: Any, class_path: str) -> bool:
    if isinstance(name, str) and os.path.isfile(name):
        name = _load_yaml(name).get("class_path", class_path)
    return str(name).rpartition(".")[2] == class_path.rpartition(".")[2]


def _checkpoint_path(settings: Settings) -> str | None:
    path = settings.get("ckpt_path")
    if path in (None, "", "null"):
        return None
    if path in ("last", "best"):
        named = ("trainer.default_root_dir", "trainer.logger.save_dir", "checkpoint.dirpath")
        folders = [settings[name] for name in named if settings.get(name) not in (None, "null")]
        # With a folder of its own for the logger, the root may still hold the checkpoints of runs without one.
        return str(find_checkpoint(str(path), folders or [Path.cwd()]))
    if path != "hpc" and "://" not in str(path) and not str(path).startswith("registry") and not os.path.isfile(path):
        raise FileNotFoundError(f"--ckpt_path: there is no file {path}. Give the path of a checkpoint, last, or best.")
    return str(path)
