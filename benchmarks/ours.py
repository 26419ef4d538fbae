"""Steps of the package's estimators, without a Trainer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.measure import Step
from benchmarks.problem import Problem
from lightning_estimators.baselines import LeaveOneOut
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

__all__ = ["COMPILED", "ESTIMATORS", "compiled_step", "model", "step"]

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
"""All for discrete latents, without `torch.compile`. Leave-one-out takes two samples at least, `Enumeration` none."""

COMPILED: dict[str, Callable[[int], GradientEstimator]] = {
    "StochasticBackprop": lambda n: StochasticBackprop(num_samples=n, compile=True),
}
"""Those that have fused loops, for linear decoders, with them."""


def model(problem: Problem, estimator: GradientEstimator) -> DiscreteLatentModel:
    """Return the package's model."""
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
    """Return a step: loss, one backward, both optimizers."""
    return _step(model(problem, ESTIMATORS[estimator](problem.samples)), batch)


def compiled_step(problem: Problem, estimator: str, batch: Tensor) -> Step | None:
    """Return the same with fused loops, if that makes a difference."""
    if estimator not in COMPILED or problem.hidden:
        return None
    return _step(model(problem, COMPILED[estimator](problem.samples)), batch)


def _step(module: DiscreteLatentModel, batch: Tensor) -> Step:
    parameters = [p for group in module.parameter_groups().values() for p in group]
    optimizers = [torch.optim.Adam(parameters)]
    if surrogate := module.surrogate_parameters():
        optimizers.append(torch.optim.Adam(surrogate))

    def run() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        module.loss(batch).mean().backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()

    return run
