"""The command `lightning-estimators`: Lightning's command line with this package's plug-ins known by name."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

# Imports are the registry: whatever is imported has a short name on the command line.
from lightning_estimators import baselines, datamodules, estimators, networks, schedulers  # noqa: F401
from lightning_estimators.checkpoints import class_paths, imported_class
from lightning_estimators.commandline.checkpoints import given_class, saved_job, wanted_checkpoint
from lightning_estimators.commandline.comparing_trainer import ComparingTrainer, subcommands
from lightning_estimators.commandline.default_callbacks import default_callbacks
from lightning_estimators.commandline.parser import Parser
from lightning_estimators.commandline.refusals import is_refusal, root_cause
from lightning_estimators.commandline.run_config import RunConfig
from lightning_estimators.commandline.run_logger import RunLogger
from lightning_estimators.commandline.surroundings import (
    check_number_of_processes,
    check_surroundings,
    check_writable,
    refuse,
)
from lightning_estimators.commandline.words import CONFIGS, arranged, environment_as_words, without_model_and_data
from lightning_estimators.modules import EstimatorModule
from lightning_estimators.private_api import whole_numbers_first

__all__ = ["EstimatorCLI", "RunConfig", "main"]

_TOLD_BY_DATA = ("image_shape", "observation_size", "action_kind", "action_sizes")
"""Arguments of models that a datamodule with an attribute of that name fills in."""


class EstimatorCLI(LightningCLI):
    """Trains, validates, tests and predicts from the command line; see `main`.

    What differs from Lightning's own: a job that is complete without options; checkpoints, which are found in a new
    process, and whose model, data and seed are defaults that environment variables, configuration files and options
    override, in this order; nothing runs because a checkpoint or a configuration names it; a log folder that cannot be
    written is refused before training. `EstimatorCLI(args=[...])` keeps `trainer`, `model` and `datamodule`.

    Args:
        args: Like the words of the command line; None takes those of the process.
        run: Whether the first word is a subcommand to run. Otherwise everything is built, and nothing is run.
    """

    def __init__(self, args: ArgsType = None, *, run: bool = True) -> None:
        self._words: Any = sys.argv[1:] if args is None else args
        common = {"allow_abbrev": False}
        super().__init__(
            EstimatorModule,
            LightningDataModule,
            save_config_callback=RunConfig,
            trainer_class=ComparingTrainer,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "lightning-estimators", **common} | dict.fromkeys(self.subcommands(), common),
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=args,
            run=run,
            auto_configure_optimizers=False,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # static in the base class
        """Return Lightning's subcommands and `compare`; only the one that the first word names, to start sooner."""
        known = subcommands()
        named = known.keys() & set(self._words[:1] if isinstance(self._words, list) else ())
        return {name: known[name] for name in named} or known

    def setup_parser(self, add_subcommands: bool, main_kwargs: Any, subparser_kwargs: Any) -> None:  # noqa: FBT001
        """Build two parsers: the real one, and one for which model and data may be anything, to be asked first."""
        self.parsers: list[Parser] = []
        self._sketches = True
        super().setup_parser(add_subcommands, main_kwargs | {"exit_on_error": False}, subparser_kwargs)
        self.sketch, self.parsers, self._sketches = self.parser, [], False
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the arguments of Trainer, model and data."""
        if not self._sketches:
            return super().add_core_arguments_to_parser(parser)
        parser.add_lightning_class_args(Trainer, "trainer")
        for name in ("model", "data"):
            parser.add_argument(f"--{name}", type=Any, sub_configs=True)

    def add_arguments_to_parser(self, parser: Parser) -> None:  # type: ignore[override]  # the parser_class above
        """Add the options of checkpoints; tell models that ask for it what the data know."""
        parser.add_class_arguments(ModelCheckpoint, "checkpoint", fail_untyped=False, sub_configs=True)
        parser.add_argument(
            "--trust_checkpoint", type=bool, default=False, help="Import whatever classes the checkpoint names."
        )
        whole_numbers_first(parser)
        job = yaml.safe_load((CONFIGS / "digits.yaml").read_text())
        model_and_data = {name: job.pop(name) for name in ("model", "data")}
        parser.set_defaults(job)
        if not self._sketches:
            parser.job = model_and_data
            for name in _TOLD_BY_DATA:
                parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
        self.parsers.append(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse: default job < checkpoint < environment variables < configuration files < options."""
        words = self._words
        if isinstance(words, dict | Namespace):
            return self._parse(words, words)
        words = arranged(words, self.subcommands())
        subcommand = next((word for word in words if word in self.subcommands()), None)
        with environment_as_words(subcommand, enabled=parser.default_env) as given:
            after = words.index(subcommand) + 1 if subcommand else 0
            words = words[:after] + given + words[after:]
            self._parse(words, without_model_and_data(words))

    def _parse(self, words: Any, outside: Any) -> None:
        """Parse what is outside of model and data, which tells the defaults of what is inside, and then all."""
        try:
            asked = _parsed(self.sketch, outside)
        except ArgumentError:
            _parsed(self.parser, words)  # whose message is the better one
            raise
        subcommand = asked.get("subcommand")
        own = next(one for one in self.parsers if not subcommand or getattr(one, "subcommand", None) == subcommand)
        asked = asked[subcommand] if subcommand else asked
        own.job = {name: value for name, value in own.job.items() if not given_class(asked.get(name))}
        self.checkpoint = wanted_checkpoint(subcommand, asked)
        if self.checkpoint:
            own.job |= saved_job(self.checkpoint, subcommand, asked)
        own.show_job()
        self.config = _parsed(self.parser, words)
        config = self.config[subcommand] if subcommand else self.config
        _check(config, words)
        if subcommand:
            config["ckpt_path"] = None  # until Lightning has passed the point where it reads options from it itself
        if config["seed_everything"] is True:
            config["seed_everything"] = _drawn_seed()

    def before_instantiate_classes(self) -> None:
        """Hand the checkpoint over to the Trainer."""
        if self.subcommand:
            config = self.config[self.subcommand]
            config["ckpt_path"] = self.checkpoint
            config["weights_only"] = config["weights_only"] is not False  # Lightning would unpickle what a URL sends

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer with the default logger and callbacks, once its folders can be written."""
        options = self.config_init[self.subcommand] if self.subcommand else self.config_init
        asked = self.config[self.subcommand] if self.subcommand else self.config
        settings = options["trainer"]
        if self.subcommand in ("validate", "test", "predict") and not self.checkpoint:
            rank_zero_warn(f"`{self.subcommand}` without --ckpt_path sees a model that was never trained.")
        root = os.path.expanduser(settings["default_root_dir"] or os.getcwd())
        logger = settings["logger"]
        if not settings["barebones"] and (logger is None or logger is True):
            logger = RunLogger(root, version=SLURMEnvironment.job_id(), default_hp_metric=False)
        if settings["barebones"]:
            settings["log_every_n_steps"] = None  # which Lightning refuses beside it, and the default job has it
        loggers = [one for one in (logger if isinstance(logger, list) else [logger]) if isinstance(one, Logger)]
        callbacks = settings["callbacks"] or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        if settings["callbacks"] != []:  # an empty list asks for nothing
            callbacks += default_callbacks(self.subcommand, self.model, self.datamodule, loggers, callbacks)
        saves = settings["enable_checkpointing"] is not False and not settings["barebones"]
        own = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
        # Beside a ModelCheckpoint in a configuration, only one that was asked for.
        if saves and not (own and asked["checkpoint"] == self.parsers[0].get_defaults()["checkpoint"]):
            callbacks.append(options["checkpoint"])
        if not settings["fast_dev_run"]:
            folders = {one.save_dir for one in loggers}
            if saves and self.subcommand == "fit":
                folders.add(options["checkpoint"].dirpath or (None if loggers else root))
            for folder in sorted(str(folder) for folder in folders if folder is not None):
                check_writable(folder)
        trainer = super().instantiate_trainer(logger=logger, callbacks=callbacks, **kwargs)
        if isinstance(trainer.accelerator, CPUAccelerator):
            check_number_of_processes(trainer.num_devices)
        return trainer

    def predict(self, **kwargs: Any) -> None:
        """Run `Trainer.predict` and keep what it returns beside the logs, as predictions.pt."""
        predictions = self.trainer.predict(**kwargs)
        if predictions and self.trainer.loggers and self.trainer.log_dir is not None:
            rank = f"_rank{self.trainer.global_rank}" if self.trainer.world_size > 1 else ""
            path = Path(self.trainer.log_dir, f"predictions{rank}.pt")
            torch.save(predictions, path)
            rank_zero_info(f"Predictions, one entry per batch, are in {path}")


def _parsed(parser: LightningArgumentParser, words: Any) -> Namespace:
    """Parse words, or options as Python has them."""
    return parser.parse_object(words) if isinstance(words, dict | Namespace) else parser.parse_args(words)


def _check(config: Namespace, words: Any) -> None:
    """Raise where options cannot be what they are meant to be, but jsonargparse takes them."""
    for path in class_paths(config.as_dict()):
        if imported_class(path) is None:
            raise ValueError(f"{path} is given as a class to build, and is none.")
    data = imported_class(config["data"]["class_path"])
    for name in _TOLD_BY_DATA:
        if hasattr(data, name) and any(str(word).startswith(f"--model.{name}") for word in words):
            raise ValueError(f"--model.{name}: {config['data']['class_path']} says what it is; leave it out.")


def _drawn_seed() -> int:
    """A seed, which is the same on all processes that Lightning starts."""
    if (seed := os.environ.get("PL_GLOBAL_SEED")) and "LOCAL_RANK" in os.environ:
        return int(seed)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("--seed_everything true: processes that were started one by one cannot agree. Give a number.")
    return random.SystemRandom().randrange(2**32)


def main(args: ArgsType = None) -> None:
    """Run the command line: `lightning-estimators fit|validate|test|predict|compare [options]`.

    `fit` without options trains a sigmoid belief network with REBAR on scikit-learn's digits; `test --ckpt_path last`
    in the same folder bounds the likelihood it reached. Every class of this package, of torch's optimizers and of
    Lightning's callbacks and loggers has a short name (`--model.estimator RELAX --model.estimator.temperature 0.3`);
    others are named by their import path (`--model my_project.MyModel`), which may be a file in the current folder.

    Args:
        args: Like the words of the command line, for notebooks and tests; None takes those of the process.

    Raises:
        SystemExit: With status 2, after one message, if what was asked for cannot be done.
    """
    check_surroundings()
    if args is None and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # the console script, unlike `python -m`, does not look there
    try:
        EstimatorCLI(args)
    except Exception as raised:
        error = root_cause(raised)
        if os.environ.get("JSONARGPARSE_DEBUG", "").lower() == "true" or not is_refusal(error):
            raise error from None
        refuse(f"{error}\n(JSONARGPARSE_DEBUG=true shows where it was raised.)")
