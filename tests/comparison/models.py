"""Modules of strangers: two different latents, dropout and batch norm; a plain LightningModule with a bottleneck."""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal, OneHotCategorical

from lightning_estimators.estimators import REBAR, GradientEstimator, Pathwise
from lightning_estimators.modules import EstimatorModule


class TwoLatents(EstimatorModule):
    """A Bernoulli layer and a normal one whose q depends on it, with dropout and batch norm in the encoder."""

    def __init__(self, discrete: GradientEstimator, continuous: GradientEstimator, dropout: float = 0.5) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(dropout))
        self.to_bits, self.to_normal, self.decoder = nn.Linear(6, 3), nn.Linear(3, 2), nn.Linear(2, 5)
        self.discrete, self.continuous = discrete, continuous
        self.calls = 0

    def loss(self, batch):
        self.calls += 1
        self.log("inside", 0.0)
        q = Independent(Bernoulli(logits=self.to_bits(self.encoder(batch))), 1)

        def given_bits(b):
            normal = Independent(Normal(self.to_normal(b), 1.0), 1)
            return self.continuous(normal, lambda z: (self.decoder(z) - batch).square().sum(-1))

        return self.discrete(q, given_bits)


def two_latents():
    torch.manual_seed(0)
    return TwoLatents(REBAR(), Pathwise())


class Bottleneck(pl.LightningModule):
    """A classifier whose features are one-hot variables: plain Lightning, with an estimator inside."""

    def __init__(self, estimator: GradientEstimator) -> None:
        super().__init__()
        self.features, self.head, self.estimator = nn.Linear(4, 6), nn.Linear(6, 3), estimator

    def training_step(self, batch, batch_idx):
        x, y = batch
        q = Independent(OneHotCategorical(logits=self.features(x).reshape(-1, 2, 3)), 1)

        def cost(b):
            logits = self.head(b.flatten(-2))
            return -(logits.log_softmax(-1) * nn.functional.one_hot(y, 3)).sum(-1)

        loss = self.estimator(q, cost).mean()
        self.log("train/loss", loss)
        return {"loss": loss}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


def bottleneck_and_batch(estimator, size=8):
    torch.manual_seed(0)
    return Bottleneck(estimator), (torch.randn(size, 4), torch.arange(size) % 3)
