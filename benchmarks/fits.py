"""Experiments that are a `fit` of the package's command line: a file of `configs/`, with a few settings changed."""

from __future__ import annotations

import contextlib
import io
import logging
import signal
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml

from benchmarks.experiment import Context, Curve, Experiment, Outcome, Value
from benchmarks.progress import Progress, logged_curves
from lightning_estimators.cli import EstimatorCLI

__all__ = ["FitExperiment", "merged"]

CONFIGS = Path(__file__).parents[1] / "configs"

Settings = dict[str, Any]


class FitExperiment(Experiment):
    """An experiment of which every run is one `fit`, then an evaluation.

    The configuration of a run is a file of `configs/` and, over it, `changes`. Both are written into the run's folder
    as `run.yaml`, beside TensorBoard's events and the checkpoint from which an interrupted run goes on.

    Implementing one, besides what `Experiment` asks:

    1. `config` and `changes`.
    2. `evaluate`, at the end of training.
    3. `curve_names`: which of the logged figures rows keep.
    """

    checkpoint_every: ClassVar[int] = 1
    """Epochs between checkpoints."""
    curve_names: ClassVar[dict[str, str]]
    """Name in the row by name in the log."""
    curve_points: ClassVar[int] = 100
    """Points a row keeps of a curve at most, evenly spaced."""

    @abstractmethod
    def config(self, settings: Mapping[str, Value]) -> str:
        """Return the name of a file in `configs/`."""

    @abstractmethod
    def changes(self, settings: Mapping[str, Value], context: Context) -> Settings:
        """Return what differs from the file, as nested settings."""

    @abstractmethod
    def evaluate(self, cli: EstimatorCLI, settings: Mapping[str, Value]) -> dict[str, float]:
        """Return the final figures of the trained model."""

    def run(self, settings: Mapping[str, Value], context: Context) -> Outcome:
        """Fit, going on from the folder's checkpoint if there is one; evaluate."""
        folder = context.folder
        folder.mkdir(parents=True, exist_ok=True)
        file = yaml.safe_load((CONFIGS / self.config(settings)).read_text())
        whole = merged(merged(file, self.changes(settings, context)), self._trainer(folder, context))
        path = folder / "run.yaml"
        path.write_text(yaml.safe_dump(whole, sort_keys=False))
        checkpoint = folder / "last.ckpt"
        resume = ["--ckpt_path", str(checkpoint)] if checkpoint.exists() else []
        begun: list[EstimatorCLI] = []

        class Command(EstimatorCLI):
            def before_fit(self) -> None:
                begun.append(self)  # a fit that fails never gets out of its constructor

        metrics, failed = {}, None
        with _quiet(), _interruptible():
            try:
                Command(["fit", "--config", str(path), *resume])
                metrics = self.evaluate(begun[0], settings)
            except FloatingPointError as error:
                failed = str(error).splitlines()[0]
        trainer: Any = begun[0].trainer
        progress = next(callback for callback in trainer.callbacks if isinstance(callback, Progress))
        logged = logged_curves(trainer)
        curves = {
            name: thinned(logged[key], self.curve_points) for key, name in self.curve_names.items() if key in logged
        }
        return Outcome(metrics, curves, progress.elapsed(), failed)

    def _trainer(self, folder: Path, context: Context) -> Settings:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False}
        tensorboard = {"save_dir": str(folder), "name": "", "version": "", "default_hp_metric": False}
        progress = {"label": context.progress, "later": context.later}
        return {
            "trainer": quiet
            | {
                "accelerator": "auto",
                "logger": [
                    {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": tensorboard},
                    {"class_path": "benchmarks.progress.CurveLogger"},
                ],
                "callbacks+": [{"class_path": "benchmarks.progress.Progress", "init_args": progress}],
            },
            "checkpoint": {
                "dirpath": str(folder),
                "filename": "last",
                "save_last": False,
                "save_top_k": 1,
                "every_n_epochs": self.checkpoint_every,
                "enable_version_counter": False,
            },
        }


def merged(one: Settings, other: Settings) -> Settings:
    """Return settings in which `other` wins; a key with `+` adds to a list. Another class drops the arguments."""
    out = dict(one)
    for key, value in other.items():
        if key.endswith("+"):
            out[key[:-1]] = [*(out.get(key[:-1]) or []), *value]
        elif isinstance(value, dict) and isinstance(out.get(key), dict):
            before = out[key]
            if value.get("class_path", before.get("class_path")) != before.get("class_path"):
                before = {}
            out[key] = merged(before, value)
        elif isinstance(value, dict):
            out[key] = merged({}, value)
        else:
            out[key] = value
    return out


def thinned(curve: Curve, points: int) -> Curve:
    """Return a curve with at most so many points, evenly spaced, the last included."""
    steps, values = curve["step"], curve["value"]
    every = max(1, -(-len(steps) // points))
    kept: Sequence[int] = range((len(steps) - 1) % every, len(steps), every)
    return {"step": [steps[i] for i in kept], "value": [values[i] for i in kept]}


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Pass an interruption on: Lightning makes an exit of it, and has the process ignore the next one."""
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
def _quiet() -> Iterator[None]:
    """Silence what Lightning says of every run: there are many here, and one line of progress."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.filterwarnings("ignore", module="lightning")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
