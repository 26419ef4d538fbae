"""Playing whole episodes, to judge a policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lightning_estimators.environments.actions import Actions
from lightning_estimators.environments.scaling import RunningScale
from lightning_estimators.rollout import Episodes, Policy

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

__all__ = ["play_episodes"]


def play_episodes(
    policy: Policy,
    environments: VectorEnv[Any, Any, Any],
    actions: Actions,
    seeds: Sequence[int],
    *,
    scale: RunningScale | None = None,
    greedy: bool = False,
    put: Callable[[Tensor], Tensor] | None = None,
) -> Episodes:
    """Play one episode for each seed, and all of them to their end, so that short ones count no more than long ones.

    Args:
        policy: What acts.
        environments: As many as are played side by side.
        actions: Of their action space.
        seeds: With which episodes begin. The same seeds and the same policy give the same episodes.
        scale: Scales observations, and does not learn from them; None to leave them as they are.
        greedy: Whether the policy takes its most probable action instead of drawing one.
        put: Brings observations and masks to where the policy is, in its precision; None if they are there.
    """
    width = environments.num_envs
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), dtype=np.int64)
    with policy.acting(0, evaluation=True):
        for first in range(0, len(seeds), width):
            count = min(width, len(seeds) - first)
            rows = slice(first, first + count)
            # Environments that have no episode left play one that is not counted.
            start: Any = [*seeds[rows], *[seeds[0]] * (width - count)]  # gymnasium's annotation leaves lists out
            observations, infos = environments.reset(seed=start)
            running = np.arange(width) < count
            while running.any():
                mask = actions.masks(infos, width)
                raw = np.asarray(observations, dtype=np.float32)
                seen = torch.from_numpy(raw if scale is None else scale(raw))
                if put is not None:
                    seen, mask = put(seen), None if mask is None else put(mask)
                chosen, _ = policy.act(seen, mask, greedy=greedy)
                observations, rewards, terminated, truncated, infos = environments.step(
                    actions.for_environments(chosen)
                )
                returns[rows] += (rewards * running)[:count]
                lengths[rows] += running[:count]
                running &= ~(terminated | truncated)
    return Episodes(torch.from_numpy(returns).float(), torch.from_numpy(lengths))
