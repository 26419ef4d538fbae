"""The table of record: every estimator at the same frozen weights."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from benchmarks import record_report
from benchmarks.experiment import Axis, Experiment, Outcome, Row, Run, Value
from benchmarks.record_measure import GROUPS, LEARNING_RATE, Reference, costs, data_noise, fit, statistics
from benchmarks.record_model import BATCH, DATA_NOISE, MODELS, SLOPE, Frozen, Spot, measured_batch, training_batches
from lightning_estimators.baselines import LearnedBaseline, LeaveOneOut
from lightning_estimators.estimators import (
    ARMS,
    CARMS,
    REBAR,
    REINFORCE,
    RELAX,
    RODEO,
    UGC,
    Concrete,
    DisARM,
    DoubleCV,
    GradientEstimator,
    GumbelRao,
    MuProp,
    ReinMax,
    RelaxedREBAR,
    StochasticBackprop,
    StraightThrough,
    UnorderedSet,
)

__all__ = ["ESTIMATORS", "Record"]

ESTIMATORS: dict[str, Callable[[], GradientEstimator]] = {
    # Unbiased and of low variance first: what comes later is compared with them.
    "StochasticBackprop": lambda: StochasticBackprop(),
    "SampledChanges-4-stratified-16-changes": lambda: StochasticBackprop(
        num_samples=4, num_changes=16, coupling="stratified"
    ),
    "SampledChanges-4-stratified": lambda: StochasticBackprop(num_samples=4, num_changes=4, coupling="stratified"),
    "SampledChanges-4": lambda: StochasticBackprop(num_samples=4, num_changes=4),
    "SampledChanges-2-antithetic": lambda: StochasticBackprop(num_samples=2, num_changes=4, coupling="antithetic"),
    "SampledChanges-2": lambda: StochasticBackprop(num_samples=2, num_changes=4),
    "SampledChanges-1": lambda: StochasticBackprop(num_changes=4),
    "ARMS-16": lambda: ARMS(num_samples=16),
    "ARMS-8": lambda: ARMS(num_samples=8),
    "ARMS-4": lambda: ARMS(num_samples=4),
    "DisARM": lambda: DisARM(),
    "UGC": lambda: UGC(),
    "CARMS-8": lambda: CARMS(num_samples=8),
    "CARMS-4": lambda: CARMS(num_samples=4),
    "CARMS-2": lambda: CARMS(num_samples=2),
    "LeaveOneOut-16": lambda: REINFORCE(LeaveOneOut(), num_samples=16),
    "LeaveOneOut-8": lambda: REINFORCE(LeaveOneOut(), num_samples=8),
    "LeaveOneOut-4": lambda: REINFORCE(LeaveOneOut(), num_samples=4),
    "LeaveOneOut-2": lambda: REINFORCE(LeaveOneOut(), num_samples=2),
    "DoubleCV-4": lambda: DoubleCV(num_samples=4),
    "DoubleCV-2": lambda: DoubleCV(num_samples=2),
    "RODEO-4": lambda: RODEO(num_samples=4),
    "RODEO-2": lambda: RODEO(num_samples=2),
    "UnorderedSet-4": lambda: UnorderedSet(num_samples=4),
    "REINFORCE": lambda: REINFORCE(),
    "REINFORCE-LearnedBaseline": lambda: REINFORCE(LearnedBaseline()),
    "MuProp": lambda: MuProp(),
    "REBAR": lambda: REBAR(),
    "RELAX": lambda: RELAX(),
    "RelaxedREBAR": lambda: RelaxedREBAR(),
    "StraightThrough": lambda: StraightThrough(),
    "ReinMax": lambda: ReinMax(),
    "GumbelRao-0.5": lambda: GumbelRao(temperature=0.5),
    "Concrete-0.5": lambda: Concrete(temperature=0.5),
    "Concrete-0.5-straight-through": lambda: Concrete(temperature=0.5, straight_through=True),
}
"""By the name in the table, in which the number of samples follows the name of the class.

`SampledChanges` is `StochasticBackprop` with `num_changes=4`, or as many changes as the name says.
"""

SECONDS = 4.0
"""Wall time of the timed steps."""


class Record(Experiment):
    """Variance, bias, time and memory of every estimator at the same weights of one trajectory of training."""

    name = "record"
    summary = "Every estimator at the same frozen weights: variance, bias, time and memory."
    axes: ClassVar[dict[str, Axis]] = {
        "model": Axis(tuple(MODELS), ("bernoulli_nonlinear", "bernoulli_two_layer"), "model", tuple(MODELS)),
        "data": Axis(
            ("MNIST", "FashionMNIST", "Omniglot"),
            ("Digits",),
            "data set; other ones than MNIST for bernoulli_nonlinear only",
            ("MNIST", "FashionMNIST", "Omniglot", "Digits"),
        ),
        "seed": Axis((0, 1, 2), (0,), "seed of weights, training and the measured batch"),
        "stage": Axis((1000, 10_000, 50_000), (3,), "steps of training after which the weights are frozen"),
        "estimator": Axis((*ESTIMATORS, DATA_NOISE), (*ESTIMATORS, DATA_NOISE), "estimator, or the noise of the data"),
        "draws": Axis((100,), (20,), f"estimates of the gradient, a multiple of {GROUPS}; batches for {DATA_NOISE}"),
        "fit": Axis((300,), (3,), "steps of Adam in which an estimator learns at the frozen weights"),
    }

    def is_possible(self, settings: Mapping[str, Value]) -> bool:
        """Return whether the estimator takes the latents of the model, and the data are used with it."""
        if settings["data"] in ("FashionMNIST", "Omniglot") and settings["model"] != "bernoulli_nonlinear":
            return False
        return settings["estimator"] == DATA_NOISE or _fits(str(settings["model"]), str(settings["estimator"]))

    def run(self, settings: Mapping[str, Value], folder: Path, data_root: str) -> Outcome:
        """Train up to the stage unless that was done before; fit the estimator, draw its estimates, time its steps."""
        spot, label, draws = Spot.of(settings), str(settings["estimator"]), int(settings["draws"])
        trajectory = folder.parent / f"trajectory,{spot.model},{spot.data},{spot.seed}"
        frozen = Frozen(spot, trajectory, spot.dataset(data_root))
        begin = time.monotonic()
        if label == DATA_NOISE:
            metrics = data_noise(frozen.model(StochasticBackprop()), training_batches(frozen), max(3, draws // 4))
            return Outcome(metrics, seconds=time.monotonic() - begin)
        make, batch = ESTIMATORS[label], measured_batch(frozen)
        model = frozen.model(make())
        steps = fit(model, training_batches(frozen), int(settings["fit"]))
        metrics = {"fit": steps} | statistics(model, batch, draws, Reference(trajectory / f"{spot.stage}"), label)
        metrics |= costs(frozen, make, batch, 0.0 if spot.quick else SECONDS)
        return Outcome(metrics, seconds=time.monotonic() - begin)

    def protocol(self, settings: Mapping[str, Value]) -> dict[str, Value]:
        """Return what the figures depend on besides the settings."""
        return {
            "batch": BATCH,
            "trajectory": "REINFORCE, leave-one-out, 4 samples; Adam 1e-3; learned prior, KL in closed form",
            "activations": f"LeakyReLU, slope {SLOPE}",
            "binarization": "dynamic; the measured batch is drawn once",
            "fit": f"Adam {LEARNING_RATE}, on other training batches",
            "time": "processor time of a whole step over that of REINFORCE, median over alternating rounds",
        }

    def report(self, rows: Sequence[Row]) -> list[str]:
        """Return the tables."""
        return record_report.tables(rows)

    def figures(self, rows: Sequence[Row], folder: Path) -> list[Path]:
        """Draw variance against time, a figure for each model and data set."""
        return record_report.figures(rows, folder)

    def missing(self, rows: Sequence[Row]) -> list[Run]:
        """Return the runs of a full plan that have no row."""
        done = {Run(self.name, row["settings"]).key for row in rows}
        return [run for run in self.plan({}, quick=False) if run.key not in done]


@functools.cache
def _fits(model: str, label: str) -> bool:
    """Return whether a small model of that kind can be built with the estimator."""
    try:
        Spot(model, "", 0, 0, quick=True).build(ESTIMATORS[label](), (1, 4, 4))
    except (TypeError, ValueError):
        return False
    return True
