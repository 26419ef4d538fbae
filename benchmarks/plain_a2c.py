"""Advantage actor-critic in plain PyTorch, as one would write it: what the package's policies are compared with."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal

__all__ = ["EpisodeLog", "train_plain_a2c"]

GAMMA, GAE_LAMBDA, ENTROPY, CRITIC, CLIP = 0.99, 0.95, 0.01, 0.5, 0.5


class EpisodeLog:
    """Finds out when a policy solves its environment: when the mean return of the last 100 episodes is high enough.

    Args:
        target: How high that is.

    Attributes:
        solved_at: Environment steps and episodes by then; None before.
    """

    def __init__(self, target: float) -> None:
        self.target = target
        self.recent: deque[float] = deque(maxlen=100)
        self.episodes = 0
        self.solved_at: tuple[int, int] | None = None
        self.curve: dict[str, list[float]] = {"step": [], "value": []}

    def add(self, returns: list[float], steps: int) -> None:
        """Take in episodes that ended in a batch, after so many environment steps."""
        for one in returns:
            self.recent.append(one)
            self.episodes += 1
            if self.solved_at is None and len(self.recent) == 100 and self.mean() >= self.target:
                self.solved_at = steps, self.episodes
        if self.recent:
            self.curve["step"].append(steps)
            self.curve["value"].append(self.mean())

    def mean(self) -> float:
        """Return the mean return of the last 100 episodes."""
        return sum(self.recent) / len(self.recent) if self.recent else float("nan")


def _network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))


class _Scale:
    """Running mean and variance of observations."""

    def __init__(self, size: int) -> None:
        self.count, self.mean, self.var = 0, np.zeros(size), np.ones(size)

    def __call__(self, x: Any) -> Any:
        return np.clip((x - self.mean) / np.sqrt(self.var + 1e-8), -10, 10).astype(np.float32)

    def update(self, x: Any) -> None:
        x = x.reshape(-1, x.shape[-1]).astype(np.float64)
        total = self.count + len(x)
        delta = x.mean(0) - self.mean
        old = self.var * self.count if self.count else 0.0
        self.var = (old + x.var(0) * len(x) + delta**2 * self.count * len(x) / total) / total
        self.mean, self.count = self.mean + delta * len(x) / total, total


def train_plain_a2c(
    environments: Any, num_steps: int, batches: int, lr: float, critic_lr: float, log: EpisodeLog, seed: int
) -> None:
    """Train for a number of batches of `num_steps` steps in each environment.

    Args:
        environments: Vector environment of gymnasium that resets in the step in which an episode ends.
        num_steps: Steps in each environment that make a batch.
        batches: Number of batches, one step of the optimizers each.
        lr: Learning rate of the policy.
        critic_lr: Learning rate of the critic.
        log: Told of the episodes.
        seed: Of everything.
    """
    torch.manual_seed(seed)
    count, size = environments.num_envs, environments.single_observation_space.shape[0]
    space = environments.single_action_space
    discrete = hasattr(space, "n")
    policy, critic = _network(size, int(space.n) if discrete else space.shape[0]), _network(size, 1)
    log_scale = nn.Parameter(torch.zeros(0 if discrete else space.shape[0]))
    make: Callable[[Tensor], Distribution] = (
        (lambda out: Categorical(logits=out))
        if discrete
        else (lambda out: Independent(Normal(out, log_scale.exp().expand_as(out)), 1))
    )
    actor = [*policy.parameters(), *([] if discrete else [log_scale])]
    optimizers = torch.optim.Adam(actor, lr=lr), torch.optim.Adam(critic.parameters(), lr=critic_lr)
    scale, (raw, _) = _Scale(size), environments.reset(seed=seed)
    running = np.zeros(count)
    for batch in range(batches):
        observations = torch.empty(num_steps, count, size)
        rewards, ended = torch.empty(num_steps, count), torch.empty(num_steps, count)
        following, seen, taken, returns = torch.zeros(num_steps, count), [], [], []
        cut: list[tuple[int, Any, Any]] = []
        for t in range(num_steps):
            seen.append(raw)
            observations[t] = torch.from_numpy(scale(raw))
            with torch.no_grad():
                action = make(policy(observations[t])).sample()
            taken.append(action)
            step = action.numpy() if discrete else np.clip(action.numpy(), space.low, space.high)
            raw, reward, terminated, truncated, infos = environments.step(step)
            running += reward
            rewards[t], ended[t] = (
                torch.from_numpy(reward),
                torch.from_numpy((terminated | truncated).astype(np.float32)),
            )
            for row in np.flatnonzero(terminated | truncated):
                returns.append(running[row])
                running[row] = 0.0
                if not terminated[row]:
                    cut.append((t, row, infos["final_obs"][row]))
        q, values = make(policy(observations)), critic(observations).squeeze(-1)
        with torch.no_grad():
            following[:-1] = values[1:]
            following[-1] = critic(torch.from_numpy(scale(raw))).squeeze(-1)
            following *= 1 - ended
            for when, where, last in cut:
                following[when, where] = critic(torch.from_numpy(scale(last))).squeeze()
            errors = rewards + GAMMA * following - values
            advantages, after = torch.empty_like(errors), torch.zeros(count)
            for t in reversed(range(num_steps)):
                after = errors[t] + GAMMA * GAE_LAMBDA * (1 - ended[t]) * after
                advantages[t] = after
        loss = -(q.log_prob(torch.stack(taken)) * advantages).mean() - ENTROPY * q.entropy().mean()
        loss = loss + CRITIC * (values - (values + advantages).detach()).square().mean()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(actor, CLIP)
        nn.utils.clip_grad_norm_(critic.parameters(), CLIP)
        for optimizer in optimizers:
            optimizer.step()
        scale.update(np.stack(seen))
        log.add(returns, (batch + 1) * num_steps * count)
