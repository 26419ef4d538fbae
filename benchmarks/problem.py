"""What is timed: the models of both papers, by their sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["PROBLEMS", "Problem"]


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
    """

    latent: Literal["bernoulli", "categorical"] = "bernoulli"
    variables: int = 200
    categories: int = 10
    hidden: tuple[int, ...] = ()
    pixels: int = 784
    batch: int = 100
    samples: int = 1

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of the latents of one image."""
        return (self.variables,) if self.latent == "bernoulli" else (self.variables, self.categories)


PROBLEMS = {
    "bernoulli linear": Problem(),
    "bernoulli nonlinear": Problem(hidden=(200, 200)),
    "categorical linear": Problem("categorical", variables=20),
    "categorical nonlinear": Problem("categorical", variables=20, hidden=(200, 200)),
}
"""784-200-784 and 784-20x10-784, without hidden layers and with two of 200, batches of 100."""
