"""A module with everything that a careless measurement would disturb."""

import random

import torch
from torch import nn
from torch.distributions import Bernoulli, Independent

from lightning_estimators.baselines import MovingAverage
from lightning_estimators.estimators import REBAR, REINFORCE
from lightning_estimators.modules import EstimatorModule


class Noisy(EstimatorModule):
    """Two nested layers, batch statistics, dropout, Python's and torch's generators, logs inside the loss."""

    def __init__(self, **options):
        super().__init__(**options)
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.Dropout(0.2))
        self.upper = nn.Linear(6, 3)
        self.decoder = nn.Linear(6 + 3, 16)
        self.lower_estimator = REBAR()
        self.upper_estimator = REINFORCE(MovingAverage(0.5))

    def loss(self, batch):
        q = Independent(Bernoulli(logits=self.encoder(batch)), 1)

        def lower_cost(b):
            above = Independent(Bernoulli(logits=self.upper(2 * b - 1)), 1)
            return self.upper_estimator(above, lambda c: self.cost(batch, b, c))

        costs = self.lower_estimator(q, lower_cost)
        self.log("inside", costs.detach().mean(), on_step=True, on_epoch=True, batch_size=len(batch))
        return costs

    def cost(self, batch, b, c):
        logits = self.decoder(torch.cat([b.expand(*c.shape[:-1], 6), c], -1))
        return -Bernoulli(logits=logits).log_prob(batch.flatten(1).round()).sum(-1) * random.uniform(0.9, 1.1)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch).mean(), batch_size=len(batch))

    def reconstruct(self, x):
        b = torch.bernoulli(torch.sigmoid(self.encoder(x)))
        return self.decoder(torch.cat([b, b[:, :3]], -1)).sigmoid().view_as(x)

    def sample_prior(self, n):
        return self.decoder(torch.bernoulli(torch.full((n, 9), 0.5))).sigmoid().view(n, 1, 4, 4)
