"""Steps of the package's estimators, without a Trainer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.problem import Problem
from lightning_estimators.baselines import LeaveOneOut
from lightning_estimators.estimators import (
    REBAR,
    REINFORCE,
    RELAX,
    Concrete,
    GradientEstimator,
    RelaxedREBAR,
    StochasticBackprop,
)
from lightning_estimators.modules import DiscreteLatentModel

__all__ = ["ESTIMATORS", "model", "step"]

ESTIMATORS: dict[str, Callable[[int], GradientEstimator]] = {
    "REINFORCE": lambda n: REINFORCE(num_samples=n),
    "REINFORCE, leave one out": lambda n: REINFORCE(LeaveOneOut(), num_samples=max(2, n)),
    "Concrete": lambda n: Concrete(num_samples=n),
    "Concrete, straight-through": lambda n: Concrete(straight_through=True, num_samples=n),
    "REBAR": lambda n: REBAR(num_samples=n),
    "REBAR, nothing learned": lambda n: REBAR(learn_temperature=False, learn_eta=False, num_samples=n),
    "RELAX": lambda n: RELAX(num_samples=n),
    "RelaxedREBAR": lambda n: RelaxedREBAR(num_samples=n),
    "StochasticBackprop": lambda n: StochasticBackprop(num_samples=n),
}
"""All for discrete latents but `Enumeration`, whose support would be 2^200. Leave-one-out takes two at least."""


def model(problem: Problem, estimator: str) -> DiscreteLatentModel:
    """Return the package's model."""
    return DiscreteLatentModel(
        ESTIMATORS[estimator](problem.samples),
        (1, 1, problem.pixels),
        latent=problem.latent,
        num_latents=[problem.variables],
        num_categories=problem.categories,
        hidden=problem.hidden,
        data_mean=0.2,
    )


def step(problem: Problem, estimator: str, batch: Tensor) -> Callable[[], object]:
    """Return a step: loss, one backward, both optimizers."""
    module = model(problem, estimator)
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
