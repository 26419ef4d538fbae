"""What a Trainer adds to a step: `fit` of the package's module, of the leanest module there is, and a plain loop."""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from benchmarks import ours, plain
from benchmarks.measure import Times
from benchmarks.problem import Problem
from lightning_estimators.datamodules.batches import Batches
from lightning_estimators.modules import DiscreteLatentModel

__all__ = ["fit_times"]

WARM_UP = 10
"""Steps at the start of every `fit` that are not timed."""


class MemoryLoader:
    """Whole batches of a tensor in memory, in a new order every time: the least one can load.

    Args:
        images: Floats, images along the first axis.
        batch_size: Images in a batch.
    """

    def __init__(self, images: Tensor, batch_size: int) -> None:
        self.images, self.batch_size = images, batch_size

    def __len__(self) -> int:
        return len(self.images) // self.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.images))
        for i in range(len(self)):
            yield self.images[order[i * self.batch_size : (i + 1) * self.batch_size]]


class Leanest(pl.LightningModule):
    """One optimizer, automatic optimization, nothing logged but the loss.

    Args:
        model: Has a `loss(batch)`, one number per example.
        parameters: What the optimizer moves.
    """

    def __init__(self, model: Any, parameters: list[Tensor]) -> None:
        super().__init__()
        self.model, self.moved = model, parameters

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the mean cost."""
        loss: Tensor = self.model.loss(batch).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam, as all programs have it."""
        return torch.optim.Adam(self.moved)


class Flat:
    """Gives a plain model flat images.

    Args:
        model: Plain model.
    """

    def __init__(self, model: plain.PlainModel) -> None:
        self.model = model

    def loss(self, batch: Tensor) -> Tensor:
        """Return the costs."""
        return self.model.loss(batch.flatten(1))


class Clock(pl.Callback):
    """Takes the time of all steps after the first few."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start."""
        if trainer.global_step == WARM_UP:
            self.begin, self.begin_cpu = time.perf_counter(), time.process_time()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop; of all stops the last counts."""
        self.end, self.end_cpu = time.perf_counter(), time.process_time()


def fit_times(problem: Problem, estimator: str, steps: int, rounds: int) -> dict[str, Times]:
    """Return times per step, of programs that take turns with whole runs.

    - `ours`: the package's module and loader of bytes, which it binarizes anew at every visit.
    - `ours, loader in memory`: the package's module and the leanest loader.
    - `leanest, our loss`: the leanest module and loader around the loss of the package's module.
    - `leanest`: the leanest module and loader around the plain program.
    - `loop`: the plain program in a plain loop over the leanest loader.

    All train the same model; progress bar and logger of Trainers are at their defaults.

    Args:
        problem: The model.
        estimator: A name for which there is a plain program.
        steps: Timed steps of a run.
        rounds: Runs of each program.
    """
    images = (torch.rand(problem.batch * 50, 1, 1, problem.pixels) < 0.2).float()
    memory = MemoryLoader(images, problem.batch)
    resampled = Batches((images * 255).to(torch.uint8), problem.batch, shuffle=True, resample=True)

    def module() -> DiscreteLatentModel:
        return ours.model(problem, ours.ESTIMATORS[estimator](problem.samples))

    def ours_loss() -> Leanest:
        model = module()
        return Leanest(model, [p for group in model.parameter_groups().values() for p in group])

    def leanest() -> Leanest:
        model = plain.ESTIMATORS[estimator](problem)
        return Leanest(Flat(model), list(model.parameters()))

    programs: dict[str, Callable[[], tuple[float, float]]] = {
        "ours": lambda: _fit(module(), resampled, steps),
        "ours, loader in memory": lambda: _fit(module(), memory, steps),
        "leanest, our loss": lambda: _fit(ours_loss(), memory, steps),
        "leanest": lambda: _fit(leanest(), memory, steps),
        "loop": lambda: _loop(problem, estimator, memory, steps),
    }
    times = {name: Times() for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            wall, cpu = program()
            times[name].wall.append(wall)
            times[name].cpu.append(cpu)
    return times


def _fit(module: pl.LightningModule, loader: Any, steps: int) -> tuple[float, float]:
    clock = Clock()
    # Progress bars go where they do not mix with the tables.
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_steps=WARM_UP + steps,
            max_epochs=-1,
            accelerator="cpu",
            default_root_dir=folder,
            callbacks=[clock],
            enable_model_summary=False,
        )
        trainer.fit(module, loader)
    return (clock.end - clock.begin) / steps, (clock.end_cpu - clock.begin_cpu) / steps


def _loop(problem: Problem, estimator: str, loader: MemoryLoader, steps: int) -> tuple[float, float]:
    model = plain.ESTIMATORS[estimator](problem)
    optimizer = torch.optim.Adam(model.parameters())
    done, begin, begin_cpu = 0, 0.0, 0.0
    while True:
        for batch in loader:
            if done == WARM_UP:
                begin, begin_cpu = time.perf_counter(), time.process_time()
            optimizer.zero_grad()
            model.loss(batch.flatten(1)).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
            if done == WARM_UP + steps:
                return (time.perf_counter() - begin) / steps, (time.process_time() - begin_cpu) / steps
