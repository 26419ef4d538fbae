"""Steps of the package's estimators, without a Trainer, and what a Trainer adds to them."""

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

from benchmarks.speed import plain
from benchmarks.speed.measure import Step, Times
from benchmarks.speed.plain import PlainModel, Problem
from lightning_estimators.baselines import LeaveOneOut
from lightning_estimators.datamodules.batches import Batches
from lightning_estimators.estimators import (
    REBAR,
    REINFORCE,
    RELAX,
    Concrete,
    Enumeration,
    GradientEstimator,
    RelaxedREBAR,
    StochasticBackprop,
)
from lightning_estimators.modules import DiscreteLatentModel

__all__ = ["COMPILED", "ESTIMATORS", "compiled_step", "fit_times", "model", "step", "training_step"]

ESTIMATORS: dict[str, Callable[[int], GradientEstimator]] = {
    "REINFORCE": lambda n: REINFORCE(num_samples=n),
    "REINFORCE, leave one out": lambda n: REINFORCE(LeaveOneOut(), num_samples=max(2, n)),
    "Concrete": lambda n: Concrete(num_samples=n),
    "Concrete, straight-through": lambda n: Concrete(straight_through=True, num_samples=n),
    "REBAR": lambda n: REBAR(num_samples=n),
    "REBAR, nothing learned": lambda n: REBAR(learn_temperature=False, learn_eta=False, num_samples=n),
    "RELAX": lambda n: RELAX(num_samples=n),
    "RelaxedREBAR": lambda n: RelaxedREBAR(num_samples=n),
    "StochasticBackprop": lambda n: StochasticBackprop(num_samples=n, compile=False),
    "Enumeration": lambda n: Enumeration(),
}
"""The estimators for discrete latents, by the number of samples, without `torch.compile`."""

COMPILED: dict[str, Callable[[int], GradientEstimator]] = {
    "StochasticBackprop": lambda n: StochasticBackprop(num_samples=n, compile=True),
}
"""The estimators that fuse loops with `torch.compile`, for linear decoders."""


def model(problem: Problem, estimator: GradientEstimator) -> DiscreteLatentModel:
    """Return the package's model of these sizes."""
    module = DiscreteLatentModel(
        estimator,
        (1, 1, problem.pixels),
        latent=problem.latent,
        num_latents=[problem.variables],
        num_categories=problem.categories,
        hidden=problem.hidden,
        data_mean=0.2,
    )
    if problem.spread:
        (weight,) = (p for p in module.decoder.parameters() if p.ndim == 2)
        torch.nn.init.normal_(weight, std=problem.spread)
    return module


def step(problem: Problem, estimator: str, batch: Tensor) -> Step:
    """Return a step of the package: loss, one backward, the steps of both optimizers."""
    return training_step(model(problem, ESTIMATORS[estimator](problem.samples)), batch)


def compiled_step(problem: Problem, estimator: str, batch: Tensor) -> Step | None:
    """Return the same step with fused loops, or None where there are none to fuse."""
    if estimator not in COMPILED or problem.hidden:
        return None
    return training_step(model(problem, COMPILED[estimator](problem.samples)), batch)


def training_step(module: DiscreteLatentModel, batch: Tensor) -> Step:
    """Return a step of a model: loss, one backward, the steps of both optimizers."""
    parameters = [p for group in module.parameter_groups().values() for p in group]
    optimizers = [torch.optim.Adam(parameters)]
    if surrogate := module.surrogate_parameters():
        optimizers.append(torch.optim.Adam(surrogate))

    def run() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        module.loss(batch).mean().backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        for optimizer in optimizers:
            optimizer.step()

    return run


WARM_UP = 10
"""Number of steps at the start of every `fit` that are not timed."""


class MemoryLoader:
    """The fastest possible loader: batches of a tensor in memory, in a new order every epoch.

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
    """The leanest LightningModule: one optimizer, and nothing logged but the loss.

    Args:
        model: Has a method `loss(batch)`, which returns a cost for each image.
        parameters: What is optimized.
        fused: Whether by Adam's fused kernel; None for torch's default.
    """

    def __init__(self, model: Any, parameters: list[Tensor], *, fused: bool | None = None) -> None:
        super().__init__()
        self.model, self.moved, self.fused = model, parameters, fused

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the mean cost."""
        loss: Tensor = self.model.loss(batch).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam, which all programs use."""
        return torch.optim.Adam(self.moved, fused=self.fused)


class Flat:
    """A plain model that takes images with their shape.

    Args:
        model: Takes flat images.
    """

    def __init__(self, model: PlainModel) -> None:
        self.model = model

    def loss(self, batch: Tensor) -> Tensor:
        """Return the costs."""
        return self.model.loss(batch.flatten(1))


class Clock(pl.Callback):
    """Takes the time of all steps after the first `WARM_UP`."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take the time before the first step that counts."""
        if trainer.global_step == WARM_UP:
            self.begin, self.begin_cpu = time.perf_counter(), time.process_time()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the time; that of the last step counts."""
        self.end, self.end_cpu = time.perf_counter(), time.process_time()


def fit_times(problem: Problem, estimator: str, steps: int, rounds: int) -> dict[str, Times]:
    """Return times per step of training runs that take turns.

    - `ours`: the package's module, with a loader of bytes that binarizes images anew whenever it loads them.
    - `ours, loader in memory`: the package's module with the fastest loader.
    - `leanest, our loss`: the leanest module around the loss of the package, with the fastest loader.
    - `leanest`: the leanest module around the plain model, with the fastest loader.
    - `leanest, fused Adam`: the same with Adam's fused kernel, by which modules of the package step.
    - `loop`: the plain model in a plain loop over the fastest loader.

    All train the same model; progress bar and logger have their defaults.

    Args:
        problem: Sizes.
        estimator: An estimator for which there is a plain model.
        steps: Timed steps of a run.
        rounds: Runs of each program.
    """
    images = (torch.rand(problem.batch * 50, 1, 1, problem.pixels) < 0.2).float()
    memory = MemoryLoader(images, problem.batch)
    resampled = Batches((images * 255).to(torch.uint8), problem.batch, shuffle=True, resample=True)

    def module() -> DiscreteLatentModel:
        return model(problem, ESTIMATORS[estimator](problem.samples))

    def ours_loss() -> Leanest:
        made = module()
        return Leanest(made, [p for group in made.parameter_groups().values() for p in group])

    def leanest(*, fused: bool | None = None) -> Leanest:
        by_hand = plain.ESTIMATORS[estimator](problem)
        return Leanest(Flat(by_hand), list(by_hand.parameters()), fused=fused)

    programs: dict[str, Callable[[], tuple[float, float]]] = {
        "ours": lambda: _fit(module(), resampled, steps),
        "ours, loader in memory": lambda: _fit(module(), memory, steps),
        "leanest, our loss": lambda: _fit(ours_loss(), memory, steps),
        "leanest": lambda: _fit(leanest(), memory, steps),
        "leanest, fused Adam": lambda: _fit(leanest(fused=True), memory, steps),
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
    by_hand = plain.ESTIMATORS[estimator](problem)
    optimizer = torch.optim.Adam(by_hand.parameters())
    done, begin, begin_cpu = 0, 0.0, 0.0
    while True:
        for batch in loader:
            if done == WARM_UP:
                begin, begin_cpu = time.perf_counter(), time.process_time()
            optimizer.zero_grad()
            by_hand.loss(batch.flatten(1)).mean().backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
            optimizer.step()
            done += 1
            if done == WARM_UP + steps:
                return (time.perf_counter() - begin) / steps, (time.process_time() - begin_cpu) / steps
