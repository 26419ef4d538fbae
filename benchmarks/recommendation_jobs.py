"""What the recommendations of `compare` are tried on: four models, and the estimators that train each of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributions import Independent, Normal, OneHotCategorical
from torch.utils.data import DataLoader, TensorDataset

from lightning_estimators.baselines import LeaveOneOut, NoBaseline
from lightning_estimators.datamodules import MNIST, Digits
from lightning_estimators.estimators import (
    LAX,
    REBAR,
    REINFORCE,
    DisARM,
    GradientEstimator,
    MuProp,
    Pathwise,
    StochasticBackprop,
)
from lightning_estimators.modules import DiscreteLatentModel, EstimatorModule, chain_optimizers
from lightning_estimators.networks import MLP

__all__ = ["JOBS", "Job", "costs"]

Candidates = tuple[GradientEstimator, ...]

LEAVE_ONE_OUT = REINFORCE(LeaveOneOut(), num_samples=4)
BERNOULLI: Candidates = (
    REBAR(),
    StochasticBackprop(),
    StochasticBackprop(num_changes=4),
    DisARM(),
    LEAVE_ONE_OUT,
    REINFORCE(NoBaseline()),
)
CATEGORICAL: Candidates = (
    REBAR(),
    StochasticBackprop(),
    StochasticBackprop(num_changes=4),
    MuProp(),
    LEAVE_ONE_OUT,
    REINFORCE(NoBaseline()),
)
NORMAL: Candidates = (
    Pathwise(),
    Pathwise(num_samples=8),
    StochasticBackprop(),
    LAX(),
    LEAVE_ONE_OUT,
    REINFORCE(NoBaseline()),
)


class Classifier(EstimatorModule):
    """Classifies digits through eight variables of four values each, and nothing else."""

    def __init__(self, estimator: GradientEstimator, **training: Any) -> None:
        super().__init__(**training)
        self.encoder, self.head, self.estimator = MLP(64, [64], 32), nn.Linear(32, 10), estimator

    def loss(self, batch: Any) -> Tensor:
        """Return the cross-entropies."""
        images, classes = batch
        q = Independent(OneHotCategorical(logits=self.encoder(images).unflatten(-1, (8, 4))), 1)

        def cost(b: Tensor) -> Tensor:
            log_probs: Tensor = self.head(b.flatten(-2)).log_softmax(-1)
            chosen: Tensor = log_probs * classes
            return -chosen.sum(-1)

        found: Tensor = self.estimator(q, cost, images)
        return found


class PlainAutoencoder(pl.LightningModule):
    """An autoencoder of digits with eight normal latents, written without this package but for its estimator."""

    def __init__(self, estimator: GradientEstimator) -> None:
        super().__init__()
        self.encoder, self.decoder, self.estimator = MLP(64, [64], 16), MLP(8, [64], 64), estimator

    def costs(self, batch: Any) -> Tensor:
        """Return the negative ELBOs."""
        images, _ = batch
        loc, log_scale = self.encoder(images).chunk(2, -1)
        q = Independent(Normal(loc, log_scale.exp()), 1)
        divergence = (0.5 * (loc.square() + (2 * log_scale).exp() - 1) - log_scale).sum(-1)

        def cost(z: Tensor) -> Tensor:
            logits: Tensor = self.decoder(z)
            pixels: Tensor = nn.functional.softplus(logits) - images * logits
            return pixels.sum(-1)

        found: Tensor = self.estimator(q, cost, images) + divergence
        return found

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return their mean."""
        return self.costs(batch).mean()

    def configure_optimizers(self) -> Any:
        """Return Adam for the model, and for what the estimator learns."""
        return chain_optimizers(self, optimizer=_adam(3e-3), surrogate_optimizer=_adam(1e-2))


def costs(module: Any, batch: Any) -> Tensor:
    """Return the cost of every example."""
    found: Tensor = module.costs(batch) if isinstance(module, PlainAutoencoder) else module.loss(batch)
    return found


@dataclass(frozen=True)
class Job:
    """A model and its data.

    Attributes:
        title: For the table.
        candidates: Estimators, all unbiased; the first is the module's own.
        data: Returns the training batches, which a Trainer takes, from the folder of image data and a seed.
        build: Returns the untrained model with an estimator, for those batches.
    """

    title: str
    candidates: Candidates
    data: Callable[[str, int], Iterable[Any]]
    build: Callable[[GradientEstimator, Iterable[Any]], pl.LightningModule]


def _adam(lr: float) -> Any:
    return functools.partial(torch.optim.Adam, lr=lr)


def _digits(_: str, seed: int) -> Iterable[Any]:
    data = Digits(batch_size=100, binarization="threshold", seed=seed)
    data.setup("fit")
    return data.train_dataloader()


def _mnist(root: str, seed: int) -> Iterable[Any]:
    data = MNIST(root, batch_size=100, binarization="static", seed=seed)
    data.setup("fit")
    return data.train_dataloader()


def _labelled(_: str, seed: int) -> Iterable[Any]:
    images, labels = load_digits(return_X_y=True)
    pixels = (torch.as_tensor(images) > 8).float()
    classes = nn.functional.one_hot(torch.as_tensor(labels), 10).float()
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(pixels, classes), batch_size=100, shuffle=True, generator=generator)


def _model(estimator: GradientEstimator, batches: Iterable[Any], lr: float, **sizes: Any) -> pl.LightningModule:
    images = next(iter(batches))
    return DiscreteLatentModel(
        estimator,
        images.shape[1:],
        data_mean=float(images.mean()),
        optimizer=_adam(lr),
        surrogate_optimizer=_adam(10 * lr),
        **sizes,
    )


JOBS = {
    "digits": Job(
        "digits job: 64 Bernoulli latents, linear",
        BERNOULLI,
        _digits,
        functools.partial(_model, lr=1e-2, num_latents=[64]),
    ),
    "mnist": Job(
        "MNIST: 200 Bernoulli latents, nonlinear",
        BERNOULLI,
        _mnist,
        functools.partial(_model, lr=1e-4, num_latents=[200], hidden=[200, 200]),
    ),
    "classifier": Job(
        "classifier of digits through 8 variables of 4 values",
        CATEGORICAL,
        _labelled,
        lambda estimator, _: Classifier(estimator, optimizer=_adam(1e-2), surrogate_optimizer=_adam(1e-1)),
    ),
    "plain": Job(
        "plain LightningModule: 8 normal latents under digits",
        NORMAL,
        _labelled,
        lambda estimator, _: PlainAutoencoder(estimator),
    ),
}
"""By name."""
