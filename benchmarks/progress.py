"""What a run tells while it goes on: one line of progress, and curves that survive an interruption."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers.logger import Logger

from benchmarks.experiment import Curve

__all__ = ["CurveLogger", "Progress", "duration", "logged_curves", "say"]


class CurveLogger(Logger):
    """Keeps what is logged, by name. `Progress` carries it through checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.curves: dict[str, Curve] = {}

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "curves"

    @property
    def version(self) -> int:
        """There is one."""
        return 0

    @property
    @rank_zero_experiment
    def experiment(self) -> dict[str, Curve]:
        """The curves."""
        return self.curves

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Rows have the settings."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a point to each curve."""
        for name, value in metrics.items():
            curve = self.curves.setdefault(name, {"step": [], "value": []})
            curve["step"].append(-1 if step is None else step)
            curve["value"].append(float(value))


class Progress(pl.Callback):
    """Says how far a run is, and keeps its curves and the time it took in its checkpoints.

    Args:
        label: What is said of the run.
        later: Seconds that what comes after it is expected to take; None if unknown.
        every: Seconds between lines where the output is not a terminal.
    """

    def __init__(self, label: str, later: float | None = 0.0, every: float = 60.0) -> None:
        self.label, self.later, self.every = label, later, every
        self.seconds = 0.0
        self._begin = self._said = time.monotonic()
        self._first_step: int | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say how far it is, now and then."""
        now = time.monotonic()
        if self._first_step is None:
            self._first_step, self._start = trainer.global_step, now
        if now - self._said < (1.0 if sys.stderr.isatty() else self.every):
            return
        self._said = now
        total = trainer.estimated_stepping_batches
        here = trainer.global_step - self._first_step
        left = (now - self._start) / max(here, 1) * (total - trainer.global_step)
        plan = "" if self.later == 0 else f"; whole plan {duration(None if self.later is None else left + self.later)}"
        say(f"{self.label}: {trainer.global_step / total:.0%}, {duration(left)} left{plan}")

    def state_dict(self) -> dict[str, Any]:
        """Return time and curves so far."""
        return {"seconds": self.elapsed(), "curves": self._curves}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.seconds, self._begin = state_dict["seconds"], time.monotonic()
        self._curves.clear()
        self._curves.update(state_dict["curves"])

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the logger."""
        self._curves = logged_curves(trainer)

    def elapsed(self) -> float:
        """Return the seconds the run has taken, before and after interruptions."""
        return self.seconds + time.monotonic() - self._begin


def logged_curves(trainer: pl.Trainer) -> dict[str, Curve]:
    """Return what a run has logged, by name."""
    return next(logger.curves for logger in trainer.loggers if isinstance(logger, CurveLogger))


def say(line: str, *, end: bool = False, write: Callable[[str], object] | None = None) -> None:
    """Write a line of progress: over the one before where the output is a terminal, below it elsewhere."""
    write = write or sys.stderr.write
    if sys.stderr.isatty():
        write(f"\r\033[K{line}" + ("\n" if end else ""))
    else:
        write(line + "\n")
    sys.stderr.flush()


def duration(seconds: float | None) -> str:
    """Return seconds as one would say them."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
