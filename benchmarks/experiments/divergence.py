"""Where the series of stochastic backpropagation diverges and the jump form is right."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Laplace

from benchmarks.experiment import Axis, Context, Experiment, Outcome, Row, Value
from lightning_estimators.estimators import StochasticBackprop

__all__ = ["Divergence"]

LOC, SCALE = 0.3, 0.8
ORDERS = (2, 4, 6, 8, 10)


class Divergence(Experiment):
    """The derivative in the scale of a Laplace variable, of a smooth and bounded cost."""

    name = "divergence"
    summary = "The truncated series against the jump form on a smooth, bounded f (beyond the papers)."
    axes: ClassVar[dict[str, Axis]] = {
        "samples": Axis((200_000,), (2000,), "estimates by the jump form"),
        "seed": Axis((0, 1, 2, 3, 4), (0, 1), "seed of the noise"),
    }

    def run(self, settings: Mapping[str, Value], context: Context) -> Outcome:
        """Integrate what is exact, sample the jump form."""
        begin = time.monotonic()
        z = torch.linspace(LOC - 40 * SCALE, LOC + 40 * SCALE, 400_001, dtype=torch.float64)  # an even number of panels
        weight = ((z - LOC).abs() / SCALE - 1) / SCALE  # the derivative of the log density in the scale
        metrics = {"exact": expectation(cost(z) * weight, z)}
        total = 0.0
        for order in ORDERS:
            total += 2 / SCALE * SCALE**order * expectation(derivative(z, order), z)
            metrics[f"series_{order}"] = total
        torch.manual_seed(int(settings["seed"]))
        scale = torch.full((int(settings["samples"]),), SCALE, dtype=torch.float64, requires_grad=True)
        q = Laplace(torch.full_like(scale, LOC).detach(), scale)
        (estimates,) = torch.autograd.grad(StochasticBackprop()(q, cost).sum(), scale)
        metrics["jump"] = float(estimates.mean())
        metrics["jump_error"] = float(estimates.std()) / len(estimates) ** 0.5
        return Outcome(metrics, seconds=time.monotonic() - begin)

    def protocol(self, settings: Mapping[str, Value]) -> dict[str, Value]:
        """Return what the figures depend on besides the settings."""
        return {
            "q": f"Laplace({LOC}, {SCALE})",
            "f": "exp(-z²/2) + sin(1.7 z)",
            "figures": "derivative of E[f] in the scale: exact and series by quadrature, jump form by sampling",
        }

    def report(self, rows: Sequence[Row]) -> list[str]:
        """Return the table."""
        return []


def cost(z: Tensor) -> Tensor:
    """Return f, smooth and bounded."""
    return torch.exp(-(z**2) / 2) + torch.sin(1.7 * z)


def derivative(z: Tensor, order: int) -> Tensor:
    """Return a derivative of f, by Hermite polynomials."""
    hermite, before = torch.ones_like(z), torch.zeros_like(z)
    for n in range(order):
        hermite, before = z * hermite - n * before, hermite
    return (-1) ** order * hermite * torch.exp(-(z**2) / 2) + 1.7**order * torch.sin(1.7 * z + order * math.pi / 2)


def density(z: Tensor) -> Tensor:
    """Return the density of q."""
    return torch.exp(-(z - LOC).abs() / SCALE) / (2 * SCALE)


def expectation(values: Tensor, z: Tensor) -> float:
    """Return the expectation under q of values on a fine, even grid."""
    return float(torch.trapezoid(values * density(z), z))
