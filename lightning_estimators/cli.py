"""The command `lightning-estimators`: Lightning's command line with this package's plug-ins known by name."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

# Imports are the registry: whatever is imported has a short name on the command line.
from lightning_estimators import baselines, datamodules, estimators, networks, schedulers  # noqa: F401
from lightning_estimators.checkpoints import check_classes, class_paths, imported_class, read_checkpoint
from lightning_estimators.commandline.checkpoints import find_checkpoint
from lightning_estimators.commandline.comparing_trainer import ComparingTrainer, subcommands
from lightning_estimators.commandline.default_callbacks import default_callbacks
from lightning_estimators.commandline.overrides import Overrides
from lightning_estimators.commandline.parser import CONFIGS, Parser, arrange
from lightning_estimators.commandline.refusals import is_refusal, root_cause
from lightning_estimators.commandline.run_config import RunConfig
from lightning_estimators.commandline.run_logger import RunLogger
from lightning_estimators.commandline.surroundings import check_surroundings
from lightning_estimators.modules import EstimatorModule
from lightning_estimators.modules.recorded import CHECKPOINT_KEY
from lightning_estimators.private_api import whole_numbers_first

__all__ = ["EstimatorCLI", "RunConfig", "main"]


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

    subcommands = staticmethod(subcommands)

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
        """Add the options of checkpoints; tell models that ask for it the shape of the images."""
        parser.add_class_arguments(ModelCheckpoint, "checkpoint", fail_untyped=False, sub_configs=True)
        parser.add_argument(
            "--trust_checkpoint", type=bool, default=False, help="Import whatever classes the checkpoint names."
        )
        whole_numbers_first(parser)
        job = yaml.safe_load((CONFIGS / "digits.yaml").read_text())
        if not self._sketches:
            for name in _TOLD_BY_DATA:
                parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
            parser.job = {name: job[name] for name in ("model", "data")}
        parser.set_defaults({name: value for name, value in job.items() if name not in ("model", "data")})
        self.parsers.append(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse: default job < checkpoint < environment variables < configuration files < options."""
        words: Any = sys.argv[1:] if args is None else args
        if not isinstance(words, dict | Namespace):
            words = arrange(words, list(self.subcommands()))
        asked, problem = self._sketch_of(words)
        subcommand = asked.get("subcommand")
        own = next(one for one in self.parsers if getattr(one, "subcommand", None) == subcommand or not subcommand)
        asked = asked[subcommand] if subcommand else asked
        for name in ("model", "data"):
            if _class_in(asked.get(name)):
                own.job.pop(name, None)
        try:
            self.checkpoint = self._checkpoint_of(subcommand, asked, own)
        except (OSError, ValueError) as error:
            own.error(str(error))
        # For --help, and for a file that says only what differs.
        own.set_defaults({name: job for name, job in own.job.items() if imported_class(job["class_path"])})
        parse = parser.parse_object if isinstance(words, dict | Namespace) else parser.parse_args
        self.config = parse(words)
        if problem is not None:
            own.error(str(problem))
        config = self.config[subcommand] if subcommand else self.config
        for path in class_paths(config.as_dict()):
            if imported_class(path) is None:
                own.error(f"{path} is given as a class to build, and is none.")
        for name in _TOLD_BY_DATA:
            if any(str(word).startswith(f"--model.{name}") for word in words):
                data = imported_class(config["data"]["class_path"])
                if data is not None and hasattr(data, name):
                    own.error(f"--model.{name}: {data.__name__} says what it is; leave it out.")
        if subcommand:
            config["ckpt_path"] = None  # until Lightning has passed the point where it reads options from it itself
        if config["seed_everything"] is True:
            config["seed_everything"] = _drawn_seed(own)

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
        loggers = [one for one in (logger if isinstance(logger, list) else [logger]) if isinstance(one, Logger)]
        callbacks = settings["callbacks"] or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        if settings["callbacks"] != []:  # an empty list asks for nothing
            callbacks += default_callbacks(self.subcommand, self.model, self.datamodule, loggers, callbacks)
        if self.subcommand == "fit" and self.checkpoint:
            callbacks.append(Overrides())
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

    def _sketch_of(self, words: Any) -> tuple[Namespace, ArgumentError | None]:
        """Options but for those inside model and data, and what is wrong with them."""
        try:
            if isinstance(words, dict | Namespace):
                return self.sketch.parse_object(words), None
            kept, inside = [], False
            for word in words:
                inside = word.startswith(("--model.", "--data.", "--print_config")) or (inside and word[:2] != "--")
                kept += [] if inside else [word]
            if not any(word == "-h" or word.partition("=")[0].endswith("help") for word in words):
                return self.sketch.parse_args(kept), None
        except ArgumentError as error:
            return _NOTHING, error
        return _NOTHING, None

    def _checkpoint_of(self, subcommand: str | None, asked: Namespace, parser: Parser) -> str | None:
        """Return the path of the checkpoint, and let the job be the one that it keeps."""
        path: Any = asked.get("ckpt_path")
        if path in ("last", "best"):
            try:
                trainer, options = asked.trainer.as_dict(), asked.checkpoint.as_dict()
                path = find_checkpoint(path, trainer, options, elsewhere=subcommand != "fit")
            except FileNotFoundError as error:
                if subcommand != "fit" or path != "last":
                    raise
                rank_zero_info(f"{error} Beginning anew.")
                return None
        if not path or path == "hpc" or str(path).startswith("registry"):
            return path or None
        checkpoint = read_checkpoint(path, weights_only=asked.get("weights_only") is not False)
        if subcommand == "fit" and "optimizer_states" not in checkpoint:
            raise ValueError(
                f"{path} holds weights only (--checkpoint.save_weights_only true), from which `fit` cannot go on; "
                "validate, test and predict can use it."
            )
        arguments = dict(checkpoint.get("hyper_parameters") or {})
        arguments.pop("_instantiator", None)
        kept = checkpoint.get(CHECKPOINT_KEY, {})
        saved = {"model": {"class_path": arguments.pop("_class_path", None), "init_args": arguments}}
        saved["data"] = dict(kept.get("data") or {})
        named = {_class_in(asked.get(name)) for name in saved}
        trusted = {"*"} if asked.get("trust_checkpoint") else {str(name).partition(".")[0] for name in named}
        for name, value in saved.items():
            given = _class_in(asked.get(name))
            # What is named in its place may be the same class, moved or renamed.
            check_classes(value.get("init_args") if given else value, trusted)
            if value.get("class_path"):
                parser.job[name] = value
        if "seed_everything" in kept:
            parser.set_defaults({"seed_everything": kept["seed_everything"]})
        return str(path)

    def _check_writable(self, folder: str) -> None:
        if "://" in folder:
            return
        try:
            folder = os.path.expanduser(folder)
            os.makedirs(folder, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            self.parser.error(
                f"the folder for logs and checkpoints cannot be written: {folder} ({error.strerror}). Give another "
                "with --trainer.default_root_dir, or write none with --trainer.logger false "
                "--trainer.enable_checkpointing false."
            )


_TOLD_BY_DATA = ("image_shape", "observation_size", "action_kind", "action_sizes")
"""Arguments of models that a datamodule with an attribute of that name fills in."""

_NOTHING = Namespace()  # type: ignore[no-untyped-call]  # jsonargparse has no types


def _class_in(value: Any) -> str | None:
    """The class that an option names, if it does."""
    return value if isinstance(value, str) else value.get("class_path") if value else None


def _drawn_seed(parser: Parser) -> int:
    """A seed, which is the same on all processes that Lightning starts."""
    if (seed := os.environ.get("PL_GLOBAL_SEED")) and "LOCAL_RANK" in os.environ:
        return int(seed)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        parser.error("--seed_everything true: processes that were started one by one cannot agree. Give a number.")
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
    try:
        check_surroundings()
        if args is None and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # the console script, unlike `python -m`, does not look there
        EstimatorCLI(args)
    except Exception as raised:
        error = root_cause(raised)
        if os.environ.get("JSONARGPARSE_DEBUG", "").lower() == "true" or not is_refusal(error):
            raise error from None
        print(f"error: {error}\n(JSONARGPARSE_DEBUG=true shows where it was raised.)", file=sys.stderr)
        raise SystemExit(2) from error
