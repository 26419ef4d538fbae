"""A small policy for tests, and environments in which everything that happens is known."""

from contextlib import contextmanager

import gymnasium
import lightning.pytorch as pl
import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from lightning_estimators.counter_noise import counter_noise

QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


class SmallPolicy(pl.LightningModule):
    """Linear, for discrete actions; learns fast, so that the policy of one step ago is another."""

    def __init__(self, observation_size=4, alternatives=2, lr=0.1):
        super().__init__()
        self.linear = nn.Linear(observation_size, alternatives)
        self.lr = lr
        self.seen, self.played, self.differences, self.acted = [], [], [], []

    @contextmanager
    def acting(self, number, *, evaluation=False):
        self.acted.append((number, evaluation))
        with torch.no_grad(), counter_noise(self.device, 0, 4 + evaluation, number, self.global_rank):
            yield

    def act(self, observations, action_mask=None, *, greedy=False):
        log_probs = self.log_probs(observations, action_mask)
        actions = log_probs.argmax(-1) if greedy else torch.multinomial(log_probs.exp(), 1).squeeze(-1)
        return actions, log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def log_probs(self, observations, action_mask=None):
        logits = self.linear(observations)
        return (logits if action_mask is None else logits.masked_fill(~action_mask, -torch.inf)).log_softmax(-1)

    def training_step(self, batch, batch_idx):
        log_prob = self.log_probs(batch.observations, batch.action_mask).gather(-1, batch.actions.unsqueeze(-1))
        self.differences.append((log_prob.squeeze(-1) - batch.log_prob).abs().max().item())
        self.seen.append(batch)
        return -(log_prob.squeeze(-1) * batch.rewards).mean()

    def validation_step(self, batch, batch_idx):
        self.played.append(batch)

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return batch

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Counting(gymnasium.Env):
    """Shows how many episodes and steps came before; the n-th step is rewarded with n, and the `length`-th ends it."""

    def __init__(self, length=3, truncates=False, action_space=None, masks=None):
        self.observation_space = spaces.Box(0, np.inf, (2,), np.float32)
        self.action_space = action_space or spaces.Discrete(2)
        self.length, self.truncates, self.masks = length, truncates, masks
        self.episode, self.taken, self.reset_seeds = -1, [], []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.reset_seeds.append(seed)
        self.episode, self.number = self.episode + 1, 0
        return self.shown(), self.info()

    def step(self, action):
        self.taken.append(action)
        self.number += 1
        ended = self.number == self.length
        return self.shown(), float(self.number), ended and not self.truncates, ended and self.truncates, self.info()

    def shown(self):
        return np.array([self.episode, self.number], dtype=np.float32)

    def info(self):
        return {} if self.masks is None else {"action_mask": self.masks}
