"""Collecting training batches: a fixed number of steps in each of several environments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lightning_estimators.environments.actions import Actions
from lightning_estimators.environments.scaling import RunningScale
from lightning_estimators.rollout import Policy, Rollout

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

__all__ = ["Collector"]


class Collector:
    """Lets a policy act in several environments side by side; episodes run on from one batch to the next.

    Args:
        environments: Begin new episodes in the step in which one ends, with its last observation in `final_obs`.
        actions: Of their action space.
        num_steps: Steps in each environment that make a batch.
        seeds: One for each environment, with which it begins.
        scale: Scales observations; None to leave them as they are.
        updates_scale: Whether the scale learns from what is collected.
    """

    def __init__(
        self,
        environments: VectorEnv[Any, Any, Any],
        actions: Actions,
        num_steps: int,
        seeds: Sequence[int],
        scale: RunningScale | None = None,
        *,
        updates_scale: bool = True,
    ) -> None:
        self.environments, self.actions, self.num_steps, self.scale = environments, actions, num_steps, scale
        self.updates_scale = updates_scale
        start: Any = list(seeds)  # gymnasium's annotation leaves lists out
        self._observations, infos = environments.reset(seed=start)
        self._mask = actions.masks(infos, environments.num_envs)
        self._elapsed = np.zeros(environments.num_envs, dtype=np.int64)
        self._returns = np.zeros(environments.num_envs)

    def collect(
        self,
        policy: Policy,
        number: int,
        put: Callable[[Tensor], Tensor] | None = None,
        total: Callable[[Tensor], Tensor] | None = None,
    ) -> Rollout:
        """Return the next batch, on the CPU.

        Args:
            policy: What acts.
            number: Of batches that were collected before, over the whole run.
            put: Brings observations and masks to where the policy is, in its precision; None if they are there.
            total: Adds a tensor up over processes, which all collect at the same time; None for one process.
        """
        shape = self.num_steps, self.environments.num_envs
        size = self._observations.shape[-1]
        raw, after = np.empty((*shape, size), dtype=np.float32), np.empty((*shape, size), dtype=np.float32)
        seen = torch.empty(*shape, size, dtype=torch.float32)  # whatever the precision of the policy is
        rewards, returns = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32)
        elapsed = np.empty(shape, dtype=np.int64)
        terminated, truncated = np.empty(shape, dtype=bool), np.empty(shape, dtype=bool)
        taken, log_probs, masks = [], [], []
        into = seen.numpy()
        with policy.acting(number):
            for step in range(self.num_steps):
                raw[step] = self._observations
                if self.scale is None:
                    into[step] = raw[step]
                else:
                    self.scale(raw[step], out=into[step])
                observations, mask = seen[step], self._mask
                masks.append(mask)
                if put is not None:
                    observations, mask = put(observations), None if mask is None else put(mask)
                chosen, log_prob = policy.act(observations, mask)
                taken.append(chosen)
                log_probs.append(log_prob)
                elapsed[step] = self._elapsed
                rewards[step], ended = self._step(chosen, after[step], terminated[step], truncated[step])
                returns[step] = self._returns
                if ended.any():
                    self._elapsed[ended], self._returns[ended] = 0, 0.0
        _check_finite(raw, rewards)
        following = after if self.scale is None else self.scale(after)
        if (
            self.scale is not None and self.updates_scale
        ):  # the batch is on the scale that the policy saw; the next one is on a new scale
            self.scale.take_in(raw, total)
        return Rollout(
            observations=seen,
            actions=torch.stack(taken).cpu(),
            rewards=torch.from_numpy(rewards),
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            next_observations=torch.from_numpy(following),
            log_prob=torch.stack(log_probs).cpu(),
            elapsed_steps=torch.from_numpy(elapsed),
            episode_returns=torch.from_numpy(returns),
            action_mask=_stacked(masks, sum(self.actions.sizes)),
        )

    def _step(self, chosen: Tensor, after: Any, terminated: Any, truncated: Any) -> tuple[Any, Any]:
        """Act, write down what came of it, and return the rewards and which episodes ended."""
        self._observations, reward, terminated[:], truncated[:], infos = self.environments.step(
            self.actions.for_environments(chosen)
        )
        after[:] = self._observations
        ended = terminated | truncated
        for row in np.flatnonzero(ended) if "final_obs" in infos else ():
            after[row] = infos["final_obs"][row]
        self._mask = self.actions.masks(infos, len(ended))
        self._elapsed += 1
        self._returns += reward
        return reward, ended


def _check_finite(observations: Any, rewards: Any) -> None:
    """Raise before something that the environment did wrong looks like a fault of the policy.

    Raises:
        ValueError: Observations or rewards are infinite or NaN.
    """
    for name, values in (("observations", observations), ("rewards", rewards)):
        if not np.isfinite(values.sum()):  # sums of float32 may overflow, so look again
            wrong = np.argwhere(~np.isfinite(values))
            if len(wrong):
                step, env = wrong[0][:2]
                raise ValueError(
                    f"the environment returned {name} that are not finite (NaN or infinity), first in step {step} of "
                    f"the batch in environment {env}. Expected finite numbers: correct the environment, or wrap it."
                )


def _stacked(masks: list[Tensor | None], width: int) -> Tensor | None:
    given = next((mask for mask in masks if mask is not None), None)
    if given is None:
        return None
    everything = torch.ones(len(given), width, dtype=torch.bool)
    return torch.stack([everything if mask is None else mask for mask in masks])
