"""A decision process so small that every trajectory can be enumerated: exact gradients of policies, in float64."""

from __future__ import annotations

import itertools
import math

import torch
from torch import nn

from lightning_estimators.rollout import Rollout

STATES, HORIZON = 3, 3


class TabularMDP:
    """Three states, three steps, and `num_actions` actions; random transitions, start and rewards.

    Observations are one-hot in the state and, behind it, in the time, which is what makes a finite horizon Markov.
    """

    observation_size = STATES + HORIZON + 1
    mask = None  # of the alternatives that are allowed in each state, shape (states, sum of sizes)

    def __init__(self, num_actions=2, seed=0):
        g = torch.Generator().manual_seed(seed)

        def random(*shape):
            return torch.rand(*shape, generator=g, dtype=torch.float64)

        self.num_actions = num_actions
        self.transition = random(STATES, num_actions, STATES).pow(3)
        self.transition /= self.transition.sum(-1, keepdim=True)
        self.reward = 4 * random(HORIZON, STATES, num_actions) - 1
        self.start = random(STATES)
        self.start /= self.start.sum()
        paths = list(itertools.product(range(STATES), repeat=HORIZON))
        choices = list(itertools.product(range(num_actions), repeat=HORIZON))
        self.states = torch.tensor([path for path in paths for _ in choices])  # (trajectories, HORIZON)
        self.actions = torch.tensor([choice for _ in paths for choice in choices])
        self.probability = self.start[self.states[:, 0]]  # of the environment's part
        for t in range(HORIZON - 1):
            self.probability = (
                self.probability * self.transition[self.states[:, t], self.actions[:, t], self.states[:, t + 1]]
            )
        time = torch.arange(HORIZON)
        self.rewards = self.reward[time, self.states, self.actions]

    def observations(self, states, time):
        """One-hot in state and time, shape of states + (observation_size,)."""
        times = nn.functional.one_hot(torch.as_tensor(time).expand_as(states), HORIZON + 1)
        return torch.cat([nn.functional.one_hot(states, STATES), times], -1).double()

    def objective(self, log_policy, gamma=1.0):
        """E of the discounted return by enumeration, differentiable in log_policy, shape (states, actions)."""
        weights = self.probability * log_policy[self.states, self.actions].sum(1).exp()
        return (weights * (self.rewards * gamma ** torch.arange(HORIZON)).sum(1)).sum()

    def values(self, log_policy, gamma=1.0):
        """Exact V of every time and state, shape (HORIZON + 1, states), by dynamic programming."""
        policy, values = log_policy.detach().exp(), torch.zeros(HORIZON + 1, STATES, dtype=torch.float64)
        for t in reversed(range(HORIZON)):
            values[t] = (policy * (self.reward[t] + gamma * self.transition @ values[t + 1])).sum(-1)
        return values

    def rollout(self, model, copies=1):
        """Every trajectory as a column of one batch, `copies` times over: num_envs = copies * trajectories."""
        n = len(self.states)
        states, actions, rewards = (x.T.repeat(1, copies) for x in (self.states, self.actions, self.rewards))
        time = torch.arange(HORIZON).unsqueeze(-1)
        observations = self.observations(states, time)
        # Where an episode ends nothing follows, so the state behind its last step does not matter.
        following = self.observations(states.roll(-1, 0), time + 1)
        ended = (time == HORIZON - 1).expand(HORIZON, copies * n)
        taken = model.actions.from_environment(self.in_form_of(model, actions))
        mask = None if self.mask is None else self.mask[states]
        with torch.no_grad():
            q = model.distribution(observations.flatten(0, 1), None if mask is None else mask.flatten(0, 1))
            log_prob = q.log_prob(taken.flatten(0, 1).double()).unflatten(0, actions.shape)
        return Rollout(
            observations=observations,
            actions=self.in_form_of(model, actions),
            rewards=rewards,
            terminated=ended,
            truncated=torch.zeros_like(ended),
            next_observations=following,
            log_prob=log_prob,
            elapsed_steps=time.expand_as(states),
            episode_returns=rewards.cumsum(0),
            action_mask=mask,
        )

    def weights(self, log_policy):
        """The probability of each trajectory under a policy, without gradient."""
        return (self.probability * log_policy[self.states, self.actions].sum(1).exp()).detach()

    def in_form_of(self, model, actions):
        """Actions 0 and 1 as a switch, if that is the kind of action of the model."""
        return actions.unsqueeze(-1) if type(model.actions).__name__ == "BinaryActions" else actions


class JointMDP(TabularMDP):
    """The same with several choices at once: the actions are all their combinations.

    Args:
        sizes: Alternatives of each choice.
        mask: See above.
    """

    def __init__(self, sizes, mask=None, seed=0):
        super().__init__(math.prod(sizes), seed)
        self.sizes, self.mask = sizes, mask

    def in_form_of(self, model, actions):
        return torch.stack(torch.unravel_index(actions, self.sizes), -1)


class Table(nn.Module):
    """A policy of the state alone: one row of numbers for each."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, observations):
        return observations[..., :STATES] @ self.table


class ValueTable(nn.Module):
    """A critic that looks V up by state and time."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(values.flatten())

    def forward(self, observations):
        state, time = observations[..., :STATES].argmax(-1), observations[..., STATES:].argmax(-1)
        return self.values[time * STATES + state]
