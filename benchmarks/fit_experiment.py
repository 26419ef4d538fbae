"""Experiments whose runs are a `fit` of the package's command line, described in `experiments.yaml`."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import sys
import time
import warnings
from abc import abstractmethod
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import yaml
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers.logger import Logger

import lightning_estimators
from benchmarks.comparison import Claim, Finding, Judge
from benchmarks.experiment import Axis, Curve, Experiment, Outcome, Value
from lightning_estimators.cli import EstimatorCLI

__all__ = [
    "CurveLogger",
    "FitExperiment",
    "KeepCurves",
    "Settings",
    "late_log_mean",
    "late_mean",
    "logged_curves",
    "quiet",
    "thinned",
]

CONFIGS = Path(lightning_estimators.__file__).parent / "configs"

DESCRIPTIONS: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("experiments.yaml").read_text())

Settings = dict[str, Any]
"""A part of a configuration file."""


class FitExperiment(Experiment):
    """An experiment whose runs are a `fit` of the package's command line, and an evaluation.

    A run is `lightning-estimators fit --config FILE --config run.yaml`, where `run.yaml`, written into the
    folder of the run, has what differs from the file. TensorBoard's events and the checkpoint from which an interrupted
    run continues lie beside it.

    Implementing one: describe it in `experiments.yaml`, set `name` and `judges`, and implement `evaluate` and what
    `Experiment` asks for the report.
    """

    checkpoint_every: ClassVar[int] = 1
    """Epochs between checkpoints."""
    curve_points: ClassVar[int] = 100
    """Largest number of points that a row keeps of a curve, evenly spaced."""
    judges: ClassVar[Mapping[str, Judge]]
    """How rows decide about the claims, by their names in `experiments.yaml`."""
    readings: ClassVar[Mapping[str, Callable[[Sequence[Finding]], str]]] = {}
    """How the findings on some claims are put in a sentence."""
    estimators: ClassVar[dict[str, Settings]]
    """The configurations of estimators by name."""
    description: ClassVar[dict[str, Any]]
    """What `experiments.yaml` says of this experiment."""

    def __init_subclass__(cls) -> None:
        """Read the description."""
        told = cls.description = DESCRIPTIONS[cls.name]
        cls.title, cls.summary = told["title"], told["summary"]
        cls.estimators = {
            name: {"class_path": words[0], "init_args": words[1] if len(words) > 1 else {}}
            for name, words in told["estimators"].items()
        }
        names = tuple(cls.estimators)
        cls.axes = {
            name: Axis(tuple(words[0]), tuple(words[1]), words[2], tuple(words[3]) if len(words) > 3 else None)
            for name, words in (told["axes"] | {"estimator": [names, names, "estimator", names]}).items()
        }
        cls.claims = tuple(
            Claim(one["question"], one["statement"], one.get("source"), cls.judges[name], cls.readings.get(name),
                  denied=one.get("denied", False))
            for name, one in told["claims"].items()
        )  # fmt: skip

    @abstractmethod
    def evaluate(self, cli: EstimatorCLI, settings: Mapping[str, Value]) -> dict[str, float]:
        """Return the final figures of the trained model."""

    def protocol(self, settings: Mapping[str, Value]) -> dict[str, Value]:
        """Return what the figures depend on besides the settings."""
        sizes, facts = self.sizes(settings), self.description["protocol"].items()
        return {name: fact.format(**sizes) if isinstance(fact, str) else fact for name, fact in facts}

    def sizes(self, settings: Mapping[str, Value]) -> dict[str, Any]:
        """Return the sizes of a full or a quick run."""
        return {name: words[bool(settings.get("quick"))] for name, words in self.description["sizes"].items()}

    def estimator(self, settings: Mapping[str, Value]) -> Settings:
        """Return the configuration of the estimator."""
        return self.estimators[str(settings["estimator"])]

    def worked_out(self, settings: Mapping[str, Value], data_root: str) -> dict[str, Any]:
        """Return further values that `changes` in `experiments.yaml` names."""
        return {}

    def changes(self, settings: Mapping[str, Value], data_root: str) -> Settings:
        """Return what differs from the configuration."""
        values = {**settings, **self.sizes(settings), "estimator": self.estimator(settings)}
        filled: Settings = _filled(self.description["changes"], values | self.worked_out(settings, data_root))
        return filled

    def run(self, settings: Mapping[str, Value], folder: Path, data_root: str) -> Outcome:
        """Fit, from the checkpoint in the folder if there is one, and evaluate."""
        folder.mkdir(parents=True, exist_ok=True)
        path, checkpoint = folder / "run.yaml", folder / "last.ckpt"
        path.write_text(yaml.safe_dump(self._all_changes(settings, folder, data_root), sort_keys=False))
        config = CONFIGS / self.description["config"].format(**settings)
        resume = ["--ckpt_path", str(checkpoint)] if checkpoint.exists() else []
        begun: list[EstimatorCLI] = []

        class Command(EstimatorCLI):
            def before_fit(self) -> None:
                begun.append(self)  # a fit that fails does not return from the constructor

        metrics, failed, evaluating = {}, None, 0.0
        with quiet(), _interruptible():
            try:
                Command(["fit", "--config", str(config), "--config", str(path), *resume])
                begin = time.monotonic()
                metrics = self.evaluate(begun[0], settings)
                evaluating = time.monotonic() - begin
            except FloatingPointError as error:
                failed = str(error).splitlines()[0]
        trainer: Any = begun[0].trainer
        training = next(callback for callback in trainer.callbacks if isinstance(callback, Timer)).time_elapsed()
        logged, names = logged_curves(trainer), self.description["curves"]
        curves = {name: thinned(logged[key], self.curve_points) for key, name in names.items() if key in logged}
        return Outcome(metrics, curves, training + evaluating, failed)

    def _all_changes(self, settings: Mapping[str, Value], folder: Path, data_root: str) -> Settings:
        changes = self.changes(settings, data_root)
        tensorboard = {"save_dir": str(folder), "name": "", "version": "", "default_hp_metric": False}
        trainer = {
            "enable_progress_bar": sys.stdout.isatty(),
            "enable_model_summary": False,
            "accelerator": "auto",
            "logger": [
                {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": tensorboard},
                {"class_path": "benchmarks.fit_experiment.CurveLogger"},
            ],
            "callbacks": [
                *changes["trainer"].get("callbacks", []),
                # The default interval is an enumeration, which cannot be written into a configuration file.
                {"class_path": "lightning.pytorch.callbacks.Timer", "init_args": {"interval": "step"}},
                {"class_path": "benchmarks.fit_experiment.KeepCurves"},
            ],
        }
        checkpoint = {
            "dirpath": str(folder),
            "filename": "last",
            "save_last": False,
            "save_top_k": 1,
            "every_n_epochs": self.checkpoint_every,
            "enable_version_counter": False,
        }
        shared = {"seed_everything": settings["seed"], "checkpoint": checkpoint}
        return changes | shared | {"trainer": changes["trainer"] | trainer}


def _filled(template: Any, values: Mapping[str, Any]) -> Any:
    """Return a part of a configuration with values in the places of their names in braces."""
    if isinstance(template, dict):
        return {name: _filled(part, values) for name, part in template.items()}
    if isinstance(template, list):
        return [_filled(part, values) for part in template]
    if not isinstance(template, str):
        return template
    name = template[1:-1]
    return values[name] if template == f"{{{name}}}" else template.format(**values)


class CurveLogger(Logger):
    """Keeps in memory what is logged, by name; `KeepCurves` carries it through checkpoints."""

    name = "curves"
    version = 0

    def __init__(self) -> None:
        super().__init__()
        self.curves: dict[str, Curve] = {}

    @property
    @rank_zero_experiment
    def experiment(self) -> dict[str, Curve]:
        """The curves."""
        return self.curves

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: rows have the settings."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a point to each curve."""
        for name, value in metrics.items():
            curve = self.curves.setdefault(name, {"step": [], "value": []})
            curve["step"].append(-1 if step is None else step)
            curve["value"].append(float(value))


class KeepCurves(pl.Callback):
    """Saves the curves of `CurveLogger` in checkpoints, so that those of a resumed run are whole."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the logger."""
        self._curves = logged_curves(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the curves so far."""
        return {"curves": self._curves}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the curves of the checkpoint."""
        self._curves.clear()
        self._curves.update(state_dict["curves"])


def logged_curves(trainer: pl.Trainer) -> dict[str, Curve]:
    """Return what a run has logged, by name."""
    return next(logger.curves for logger in trainer.loggers if isinstance(logger, CurveLogger))


def thinned(curve: Curve, points: int) -> Curve:
    """Return a curve of at most so many points, evenly spaced, the last one included."""
    steps, values = curve["step"], curve["value"]
    every = max(1, -(-len(steps) // points))
    kept: Sequence[int] = range((len(steps) - 1) % every, len(steps), every)
    return {"step": [steps[i] for i in kept], "value": [values[i] for i in kept]}


def late_mean(curve: Curve) -> float:
    """Return the mean over the last tenth of a curve."""
    values = _late(curve)
    return math.fsum(values) / len(values)


def late_log_mean(curve: Curve) -> float:
    """Return the logarithm of the mean of exp(value) over the last tenth of a curve."""
    values = _late(curve)
    largest = max(values)
    if largest == -math.inf:
        return largest
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values) / len(values))


def _late(curve: Curve) -> list[float]:
    return curve["value"][-max(1, len(curve["value"]) // 10) :]


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Raise the interruption that Lightning turns into an exit, and undo that it ignores the next one."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's remarks on each run: a plan has many runs."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
