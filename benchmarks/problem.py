"""What is timed: the models of both papers, by their sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

__all__ = ["PROBLEMS", "Problem", "images", "tiny"]


@dataclass(frozen=True)
class Problem:
    """One layer of discrete latents under images.

    Attributes:
        latent: Family of the latents.
        variables: How many there are.
        categories: Of each, for categorical latents.
        hidden: Widths of the tanh layers of encoder and decoder.
        pixels: Outputs.
        batch: Images per step.
        samples: Samples of the latents per image.
        spread: Standard deviation of the weights of a linear decoder, as training makes it; 0: initial weights, which
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
"""784-200-784 and 784-20x10-784, without hidden layers and with two of 200, batches of 100; the
first with weights as after training, on which the time of an exact rule depends, and with few enough latents to
enumerate."""


def tiny(problem: Problem) -> Problem:
    """Return the same kind of model in sizes that take no time."""
    return replace(problem, variables=4, categories=3, hidden=(6,) * len(problem.hidden), pixels=12, batch=5)


def images(problem: Problem) -> Tensor:
    """Return a batch of binary images, (B, 1, 1, pixels); a fifth of the pixels are 1."""
    return (torch.rand(problem.batch, 1, 1, problem.pixels) < 0.2).float()
