"""A small environment in torch, and the loader that acts in it: what a datamodule does for a policy, on a page."""

from __future__ import annotations

import torch

from lightning_estimators.rollout import Episodes, Rollout

LENGTH = 6  # steps of an episode


class Signals:
    """Shows one of `states` signals at a time; a reward of 1 for each choice, or switch, that answers it.

    Episodes are cut off after six steps, or end at the first step with probability `end`.
    """

    def __init__(self, num_envs, states=3, end=0.0, seed=0):
        self.num_envs, self.states, self.end = num_envs, states, end
        self.generator = torch.Generator().manual_seed(seed)
        self.seen = self._next()
        self.step_number = torch.zeros(num_envs, dtype=torch.int64)

    def _next(self):
        return torch.randint(self.states, (self.num_envs,), generator=self.generator)

    def observe(self):
        return torch.nn.functional.one_hot(self.seen, self.states).float()

    def step(self, answers):
        """Rewards, terminated, truncated and the observation after the step, before any reset."""
        rewards = (answers.reshape(self.num_envs, -1) == self.seen.unsqueeze(-1)).float().mean(-1)
        terminated = torch.rand(self.num_envs, generator=self.generator) < self.end
        truncated = self.step_number == LENGTH - 1
        self.seen = self._next()
        following = self.observe()
        ended = terminated | truncated
        self.step_number = (self.step_number + 1).masked_fill(ended, 0)
        self.seen = torch.where(ended, self._next(), self.seen)
        return rewards, terminated, truncated, following


def collect(policy, env, num_steps, sums=None):
    """Act for some steps with a policy."""
    steps = []
    sums = torch.zeros(env.num_envs) if sums is None else sums
    for _ in range(num_steps):
        seen, elapsed = env.observe(), env.step_number.clone()
        actions, log_prob = policy.act(seen)
        rewards, terminated, truncated, following = env.step(actions)
        sums += rewards
        steps.append((seen, actions, rewards, terminated, truncated, following, log_prob, elapsed, sums.clone()))
        sums[terminated | truncated] = 0
    return Rollout(*(torch.stack(column) for column in zip(*steps, strict=True)))


class Acting:
    """A loader with a length that collects each batch when it is asked for it."""

    def __init__(self, policy, env, num_steps=LENGTH, batches=5):
        self.policy, self.env, self.num_steps, self.batches = policy, env, num_steps, batches
        self.sums, self.collected = torch.zeros(env.num_envs), 0

    def __len__(self):
        return self.batches

    def __iter__(self):
        for _ in range(self.batches):
            with self.policy.acting(self.collected):
                batch = collect(self.policy, self.env, self.num_steps, self.sums)
            self.collected += 1
            yield batch


class Ahead(Acting):
    """The same without a length, so that Lightning asks for a batch before it has learned from the last one."""

    __len__ = None


class Playing:
    """Evaluation: one batch of episodes with fixed noise."""

    def __init__(self, policy, make_env):
        self.policy, self.make_env = policy, make_env

    def __len__(self):
        return 1

    def __iter__(self):
        with self.policy.acting(0, evaluation=True):
            batch = collect(self.policy, self.make_env(), LENGTH)
        yield Episodes(batch.episode_returns[-1], batch.elapsed_steps[-1] + 1)
