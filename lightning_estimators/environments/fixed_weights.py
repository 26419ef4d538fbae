"""Rollouts of a policy that does not learn from them, for figures at fixed weights; and the seeds of environments."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from enum import IntEnum
from typing import cast

import lightning.pytorch as pl
import numpy as np

from lightning_estimators.environments.actions import Actions
from lightning_estimators.environments.collector import Collector
from lightning_estimators.environments.making import Maker
from lightning_estimators.environments.scaling import RunningScale
from lightning_estimators.rollout import Policy, Rollout

__all__ = ["Purpose", "rollouts_at_fixed_weights", "seeds_for"]

_FIRST = 2**40
"""Number of the first rollout, for the noise of acting: training never gets there."""


class Purpose(IntEnum):
    """What environments are seeded for; a key beside the seed, so that no two uses share episodes."""

    TRAIN, VALIDATE, TEST, PREDICT, VIDEO, FIXED = range(6)


def seeds_for(count: int, *key: int) -> list[int]:
    """Return seeds for environments: a function of a key of non-negative integers.

    Args:
        count: How many.
        *key: Such as the seed of the run, a `Purpose`, and the number of the process.
    """
    return [int(word) for word in np.random.SeedSequence(key).generate_state(count)]


def rollouts_at_fixed_weights(
    policy: Policy,
    maker: Maker,
    actions: Actions,
    num_envs: int,
    num_steps: int,
    seed: int,
    scale: RunningScale | None,
    in_processes: bool,  # noqa: FBT001
) -> Iterator[Rollout]:
    """Yield rollouts without end, from environments and noise of their own; the scale stays as it is.

    Args:
        policy: What acts, in the state that it has when a rollout is asked for.
        maker: Makes the environments.
        actions: Of their action space.
        num_envs: How many.
        num_steps: Steps in each that make a rollout.
        seed: Of the environments.
        scale: Scales observations, or None.
        in_processes: Whether each environment runs in a process of its own.
    """
    device = cast(pl.LightningModule, policy).device
    put = None if device.type == "cpu" else lambda tensor: tensor.to(device)
    environments = maker.vector(num_envs, in_processes=in_processes)
    try:
        seeds = seeds_for(num_envs, seed, Purpose.FIXED)
        collector = Collector(environments, actions, num_steps, seeds, scale, updates_scale=False)
        for number in itertools.count(_FIRST):
            yield collector.collect(policy, number, put)
    finally:
        environments.close()
