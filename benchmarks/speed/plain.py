"""What is timed, and the same estimators written by hand in plain PyTorch, with which the package is compared.

This module needs torch only, so that it can be imported where the package is not installed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.measure import Step

__all__ = ["ESTIMATORS", "PROBLEMS", "PlainModel", "Problem", "images", "step", "tiny"]


@dataclass(frozen=True)
class Problem:
    """The sizes of a model with one layer of discrete latents under images.

    Attributes:
        latent: Family of the latents.
        variables: Number of latent variables.
        categories: Number of classes of a categorical latent.
        hidden: Widths of the tanh layers of encoder and decoder.
        pixels: Number of pixels.
        batch: Images per step.
        samples: Samples of the latents per image.
        spread: Standard deviation of the weights of a linear decoder, 1/2 after training; 0 for initial weights, which
            are smaller the more latents there are.
    """

    latent: Literal["bernoulli", "categorical"] = "bernoulli"
    variables: int = 200
    categories: int = 10
    hidden: tuple[int, ...] = ()
    pixels: int = 784
    batch: int = 100
    samples: int = 1
    spread: float = 0.0

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of the latents of one image."""
        return (self.variables,) if self.latent == "bernoulli" else (self.variables, self.categories)


PROBLEMS = {
    "bernoulli linear": Problem(),
    "bernoulli nonlinear": Problem(hidden=(200, 200)),
    "categorical linear": Problem("categorical", variables=20),
    "categorical nonlinear": Problem("categorical", variables=20, hidden=(200, 200)),
    "spread weights": Problem(spread=0.5),
    "six latents": Problem(variables=6),
}
"""784-200-784 and 784-20x10-784, without hidden layers and with two of 200, in batches of 100. Then the first with
weights as after training, on which the time of the exact rule depends, and with so few latents that they can be
enumerated."""


def tiny(problem: Problem) -> Problem:
    """Return the same model with tiny sizes."""
    return replace(problem, variables=4, categories=3, hidden=(6,) * len(problem.hidden), pixels=12, batch=5)


def images(problem: Problem) -> Tensor:
    """Return a batch of binary images, `(B, 1, 1, pixels)`, of whose pixels a fifth is 1."""
    return (torch.rand(problem.batch, 1, 1, problem.pixels) < 0.2).float()


class PlainModel(nn.Module, ABC):
    """Encoder, decoder, learned prior, KL in closed form: the model of `DiscreteLatentModel` with one layer.

    Args:
        problem: Sizes.
        mean: Of the pixels.
    """

    def __init__(self, problem: Problem, mean: float = 0.2) -> None:
        super().__init__()
        size = math.prod(problem.event_shape)
        self.problem, self.mean = problem, mean
        self.encoder = _network(problem.pixels, problem.hidden, size)
        self.decoder = _network(size, problem.hidden[::-1], problem.pixels)
        self.prior = nn.Parameter(torch.zeros(problem.event_shape))

    @abstractmethod
    def loss(self, x: Tensor) -> Tensor:
        """Return costs, shape (B,), whose gradient is the estimate."""

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of the latents."""
        logits: Tensor = self.encoder(x - self.mean).unflatten(-1, self.problem.event_shape)
        return logits if self.problem.latent == "bernoulli" else logits.log_softmax(-1)

    def cost(self, z: Tensor, x: Tensor) -> Tensor:
        """Return -log p(x|z)."""
        if self.problem.latent == "categorical":
            z = z.flatten(-2)
        output: Tensor = self.decoder(2 * z - 1)
        return F.binary_cross_entropy_with_logits(output, x.expand_as(output), reduction="none").sum(-1)

    def kl(self, logits: Tensor) -> Tensor:
        """Return KL(q, prior)."""
        if self.problem.latent == "bernoulli":
            prior = self.prior
            kl = torch.sigmoid(logits) * (logits - prior) - F.softplus(logits) + F.softplus(prior)
        else:
            kl = (logits.exp() * (logits - self.prior.log_softmax(-1))).sum(-1)
        return kl.sum(-1)

    def sample(self, logits: Tensor) -> Tensor:
        """Draw S hard samples, `(S, B, *event_shape)`."""
        with torch.no_grad():
            if self.problem.latent == "bernoulli":
                u = torch.rand(self.problem.samples, *logits.shape, device=logits.device)
                return (u < torch.sigmoid(logits)).to(logits.dtype)
            probs = logits.exp()
            u = torch.rand(self.problem.samples, *logits.shape[:-1], 1, device=logits.device)
            index = (u >= probs.cumsum(-1)[..., :-1]).sum(-1)
            return F.one_hot(index, logits.shape[-1]).to(logits.dtype)


class PlainREINFORCE(PlainModel):
    """The score function with a moving average of past costs."""

    def __init__(self, problem: Problem, mean: float = 0.2) -> None:
        super().__init__(problem, mean)
        self.average: Tensor | None = None

    def loss(self, x: Tensor) -> Tensor:
        """Return costs with the surrogate term of the score function."""
        logits = self.logits(x)
        z = self.sample(logits)
        cost = self.cost(z, x)
        if self.problem.latent == "bernoulli":
            log_q = -F.binary_cross_entropy_with_logits(logits.expand_as(z), z, reduction="none").sum(-1)
        else:
            log_q = (z * logits).sum((-1, -2))
        known = cost.detach()
        signal = known if self.average is None else known - self.average
        current = known.mean()
        self.average = current if self.average is None else 0.99 * self.average + 0.01 * current
        return (cost + signal * log_q).mean(0) + self.kl(logits)


class PlainConcrete(PlainModel):
    """The Concrete (Gumbel-softmax) relaxation at temperature 1/2."""

    def loss(self, x: Tensor) -> Tensor:
        """Return costs at relaxed samples."""
        logits = self.logits(x)
        u = torch.rand(self.problem.samples, *logits.shape, device=logits.device)
        u = u.clamp_min(torch.finfo(logits.dtype).tiny)
        if self.problem.latent == "bernoulli":
            z = torch.sigmoid((logits + u.log() - torch.log1p(-u)) / 0.5)
        else:
            z = torch.softmax((logits - (-u.log()).log()) / 0.5, -1)
        return self.cost(z, x).mean(0) + self.kl(logits)


class PlainLocalExpectation(PlainModel):
    """The exact discrete rule, by evaluating the decoder at every changed latent, vectorised in chunks."""

    chunk = 2**25
    """Bytes of decoder output in a chunk; the fastest of 2^20 to 2^28 on the machine where this was written."""

    def loss(self, x: Tensor) -> Tensor:
        """Return costs with a term whose gradient is the rule's."""
        logits = self.logits(x)
        z = self.sample(logits)
        cost = self.cost(z, x)
        with torch.no_grad():
            if self.problem.latent == "bernoulli":
                p = torch.sigmoid(logits)
                gradient = p * (1 - p) * (1 - 2 * z) * self.changes(z, cost, x)
            else:
                probs, change = logits.exp(), self.changes(z, cost, x)
                gradient = probs * (change - (probs * change).sum(-1, keepdim=True))
        attached = (gradient * logits).flatten(2).sum(-1)
        return (cost + attached - attached.detach()).mean(0) + self.kl(logits)

    def changes(self, z: Tensor, cost: Tensor, x: Tensor) -> Tensor:
        """Return by how much the cost changes with each entry of z: flipped if it is Bernoulli, else made the 1."""
        changes = torch.empty(z[0, 0].numel(), *cost.shape)
        step = max(1, self.chunk // (cost.numel() * self.problem.pixels * z.element_size()))
        for start in range(0, len(changes), step):
            entries = torch.arange(start, min(start + step, len(changes)))
            copies = torch.arange(len(entries))
            points = z.repeat(len(entries), *(1 for _ in z.shape))
            if self.problem.latent == "bernoulli":
                points[copies, :, :, entries] = 1 - points[copies, :, :, entries]
            else:
                variable, category = entries // z.shape[-1], entries % z.shape[-1]
                points[copies, :, :, variable] = 0.0
                points[copies, :, :, variable, category] = 1.0
            changes[entries] = self.cost(points, x) - cost
        return changes.movedim(0, -1).reshape(z.shape)


ESTIMATORS: dict[str, type[PlainModel]] = {
    "REINFORCE": PlainREINFORCE,
    "Concrete": PlainConcrete,
    "StochasticBackprop": PlainLocalExpectation,
}
"""The plain models, by the name of the same estimator in the package."""


def step(problem: Problem, estimator: str, batch: Tensor) -> Step | None:
    """Return a step of the plain program, if there is one for this estimator."""
    if estimator not in ESTIMATORS:
        return None
    model, x = ESTIMATORS[estimator](problem), batch.flatten(1)
    optimizer = torch.optim.Adam(model.parameters())

    def run() -> None:
        optimizer.zero_grad()
        model.loss(x).mean().backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        optimizer.step()

    return run


def _network(inputs: int, hidden: tuple[int, ...], outputs: int) -> nn.Sequential:
    widths = [inputs, *hidden, outputs]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers[:-1])
