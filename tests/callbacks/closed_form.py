"""A module whose gradient is known in distribution, in one process and in several."""

import torch
from torch import nn
from torch.distributions import Bernoulli, Independent

from lightning_estimators.baselines import NoBaseline
from lightning_estimators.estimators import REINFORCE
from lightning_estimators.modules import EstimatorModule

TARGET = 0.3


class Coins(EstimatorModule):
    """One coin per example, each with a logit of its own; REINFORCE on (b - t)^2. Batches are mappings."""

    def __init__(self, count, **options):
        super().__init__(**options)
        self.coins = nn.Parameter(torch.linspace(-2, 2, count))
        self.exact = nn.Parameter(torch.tensor([3.0, 4.0]))  # a gradient without noise: that of the sum of squares
        self.idle = nn.Parameter(torch.zeros(5))  # no gradient at all
        self.score = REINFORCE(NoBaseline())

    def loss(self, batch):
        q = Independent(Bernoulli(logits=self.coins[batch["index"], None]), 1)
        costs = self.score(q, lambda b: (b - TARGET).square().sum(-1))
        return costs + self.exact.square().sum() + 0 * self.idle.sum()


def score_moments(module):
    """Mean and variance of f(b) d/dl log q(b) for every coin, by enumeration."""
    p = module.coins.detach().sigmoid()
    heads, tails = (1 - TARGET) ** 2 * (1 - p), TARGET**2 * -p
    mean = p * heads + (1 - p) * tails
    return mean, p * heads.square() + (1 - p) * tails.square() - mean.square()


def loader(count, batches=1):
    return torch.utils.data.DataLoader([{"index": torch.arange(count)}] * batches, batch_size=None)
