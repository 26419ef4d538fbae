"""Measure sampled changes by their number, and write the table in docs/stochastic_backpropagation.md.

Run in the root, as `PYTHONPATH=. python docs/tables/changes.py`, after `python -m benchmarks record` with the options
`--model bernoulli_nonlinear --data MNIST --seed 0 --stage 10000 --estimator REINFORCE`, which trains the weights. It
takes three minutes on one core.
"""

import argparse
import math
from itertools import chain
from pathlib import Path

import torch
from document import write_table

from benchmarks.record_measure import Reference, costs, fit, statistics
from benchmarks.record_model import Frozen, Spot, measured_batch, training_batches
from lightning_estimators.estimators import StochasticBackprop
from lightning_estimators.noise import Coupling

SPOT = Spot("bernoulli_nonlinear", "MNIST", seed=0, stage=10_000, quick=False)

SETTINGS: tuple[tuple[int, Coupling, int], ...] = (
    (1, "independent", 4),
    (1, "independent", 16),
    (2, "antithetic", 4),
    (2, "antithetic", 16),
    (4, "stratified", 4),
    (4, "stratified", 8),
    (4, "stratified", 16),
    (8, "stratified", 4),
    (8, "stratified", 8),
)
"""Samples, their coupling, and changes of each sample."""

HEAD = (
    "| samples | coupling | changes | time | logits | encoder | logits × time | encoder × time |",
    "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
)

DRAWS, STEPS, SECONDS = 60, 200, 1.5
"""Estimates of the gradient; steps in which changes are learned before; wall time of the timed steps."""


def row(frozen: Frozen, samples: int, coupling: Coupling, changes: int, scratch: Path) -> str:
    """Return the line of the table for one setting."""

    def make() -> StochasticBackprop:
        return StochasticBackprop(num_samples=samples, coupling=coupling, num_changes=changes)

    model, batch = frozen.model(make()), measured_batch(frozen)
    fit(model, training_batches(frozen), STEPS)
    found = statistics(model, batch, DRAWS, Reference(scratch), f"{samples}-{coupling}-{changes}")
    time = costs(frozen, make, batch, SECONDS)["time"]
    logits, encoder = math.log(found["variance_logits"]), math.log(found["variance_encoder"])
    work = f"{logits + math.log(time):.2f} | {encoder + math.log(time):.2f}"
    return f"| {samples} | {coupling} | {changes} | {time:.2f} | {logits:.2f} | {encoder:.2f} | {work} |"


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="of `python -m benchmarks record`")
    parser.add_argument("--data-root", default="data")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.runs / "record" / f"trajectory,{SPOT.model},{SPOT.data},{SPOT.seed}"
    frozen = Frozen(SPOT, folder, SPOT.dataset(options.data_root))
    lines = (row(frozen, samples, coupling, changes, folder / "changes") for samples, coupling, changes in SETTINGS)
    write_table("stochastic_backpropagation.md", "changes.py", chain(HEAD, lines))


if __name__ == "__main__":
    main()
