"""Does training bear out what `compare` recommends? Costs after equal processor time beside variance × time."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch

from benchmarks.experiment import Axis, Curve, Experiment, Outcome, Row, Value
from benchmarks.fit_experiment import quiet
from benchmarks.recommendation_jobs import JOBS, Job, costs
from lightning_estimators.comparison import compare
from lightning_estimators.comparison.candidates import describe
from lightning_estimators.counter_noise import counter_noise
from lightning_estimators.estimators import GradientEstimator

__all__ = ["TABLE", "Recommendation"]

TABLE = "compare"
"""In the place of an estimator: what `compare` measures of all of them."""

BUDGET = 60.0
"""Seconds of a call of `compare`."""

POINTS = 10
"""Of a curve; at each the training cost is evaluated."""


class Recommendation(Experiment):
    """Trains models by several estimators for the same processor time, and compares these at two places of training."""

    name = "recommendation"
    summary = "Training cost after equal processor time, beside the variance × time that `compare` measures."
    axes: ClassVar[dict[str, Axis]] = {
        "job": Axis(tuple(JOBS), ("digits",), "model and data", tuple(JOBS)),
        "seconds": Axis((8.0,), (0.2,), "seconds of processor time of training, Lightning's included"),
        "seed": Axis((0, 1), (0,), "seed of weights, batches and noise"),
        "estimator": Axis(
            (TABLE, *dict.fromkeys(describe(one) for job in JOBS.values() for one in job.candidates)),
            (TABLE, "StochasticBackprop()"),
            f"estimator; {TABLE} for the table",
        ),
    }

    def is_possible(self, settings: Mapping[str, Value]) -> bool:
        """Return whether the job has the estimator; its table is measured once."""
        if settings["estimator"] == TABLE:
            return settings["seed"] == 0
        return settings["estimator"] in {describe(one) for one in JOBS[str(settings["job"])].candidates}

    def run(self, settings: Mapping[str, Value], folder: Path, data_root: str) -> Outcome:
        """Train, or measure the table at the initial weights and after a quarter of the time."""
        job, seed, seconds = JOBS[str(settings["job"])], int(settings["seed"]), float(settings["seconds"])
        begin = time.monotonic()
        if settings["estimator"] == TABLE:
            budget = 1.0 if settings.get("quick") else BUDGET
            module, batches = _begun(job, job.candidates[0], seed, data_root)
            metrics = _table(module, batches, job, budget, "initial")
            _train(module, batches, seconds / 4)
            metrics |= _table(module, batches, job, budget, "trained")
            return Outcome(metrics, seconds=time.monotonic() - begin)
        estimator = next(one for one in job.candidates if describe(one) == settings["estimator"])
        module, batches = _begun(job, estimator, seed, data_root)
        watch = _train(module, batches, seconds)
        metrics = {"cost": watch.curve["value"][-1], "steps": watch.curve["step"][-1]}
        return Outcome(metrics, {"cost": watch.curve}, time.monotonic() - begin)

    def protocol(self, settings: Mapping[str, Value]) -> dict[str, Value]:
        """Return what the figures depend on besides the settings."""
        return {
            "batch": 100,
            "cost": "mean over 1000 training examples, 8 samples each, in nats; after the seconds of processor time",
            "curve": f"cost against optimizer steps, at {POINTS} equally spaced times",
            "table": f"{BUDGET:.0f} s, one batch; initial weights, and those after a quarter of the time",
        }

    def report(self, rows: Sequence[Row]) -> list[str]:
        """The table is in docs/comparison.md, by `python docs/tables/recommendation.py`."""
        return []


class _Watch(pl.Callback):
    """Evaluates the cost now and then, and ends training after so many seconds of the process, evaluations excluded."""

    def __init__(self, seconds: float, examples: list[Any]) -> None:
        super().__init__()
        self.seconds, self.examples = seconds, examples
        self.curve: Curve = {"step": [], "value": []}
        self.began = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluate(trainer, pl_module)
        self.began = time.process_time()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        now = time.process_time()
        if now - self.began >= self.seconds * len(self.curve["step"]) / POINTS:
            self._evaluate(trainer, pl_module)
            trainer.should_stop = len(self.curve["step"]) > POINTS
            self.began += time.process_time() - now

    @torch.no_grad()
    def _evaluate(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        module.eval()
        with counter_noise(module.device, 1):
            found = torch.stack([costs(module, batch).mean() for batch in self.examples for _ in range(8)])
        module.train()
        self.curve["step"].append(trainer.global_step)
        self.curve["value"].append(float(found.mean()))


def _begun(job: Job, estimator: GradientEstimator, seed: int, data_root: str) -> tuple[pl.LightningModule, Any]:
    pl.seed_everything(seed, verbose=False)
    batches = job.data(data_root, seed)
    pl.seed_everything(seed, verbose=False)  # the same weights with every estimator
    return job.build(copy.deepcopy(estimator), batches), batches


def _train(module: pl.LightningModule, batches: Any, seconds: float) -> _Watch:
    watch = _Watch(seconds, list(islice(batches, 10)))
    with quiet():
        trainer = pl.Trainer(
            max_epochs=-1,
            accelerator="cpu",
            logger=False,
            callbacks=[watch],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, batches)
    if not trainer.should_stop:  # Lightning returns normally when it is interrupted
        raise KeyboardInterrupt
    return watch


def _table(module: pl.LightningModule, batches: Any, job: Job, budget: float, stage: str) -> dict[str, float]:
    began = time.process_time()
    result = compare(module, next(iter(batches)), job.candidates[1:], budget, progress=False)
    metrics = {f"{stage}/seconds": result.seconds, f"{stage}/processor_seconds": time.process_time() - began}
    for row in result.rows:
        figures = {"variance": row.variance, "variance_error": row.variance_error, "step_seconds": row.step_seconds}
        metrics |= {f"{stage}/{row.name}/{name}": value for name, value in figures.items()}
    return metrics
