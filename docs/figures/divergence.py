"""Draw how the series of stochastic backpropagation diverges on a smooth, bounded cost where the jump form is right.

Run as `python docs/figures/divergence.py`; writes divergence.png beside itself. Expectations are exact (quadrature),
but for the jump form's: the mean of 200 000 estimates with seed 0, and two standard errors.
"""

import math
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.distributions import Laplace

from lightning_estimators.estimators import StochasticBackprop

LOC, SCALE = 0.3, 0.8
TERMS = 5
SAMPLES = 200_000


def cost(z: Tensor) -> Tensor:
    """Smooth and bounded."""
    return torch.exp(-(z**2) / 2) + torch.sin(1.7 * z)


def derivative(z: Tensor, order: int) -> Tensor:
    """Derivatives of the cost, by Hermite polynomials."""
    hermite, before = torch.ones_like(z), torch.zeros_like(z)
    for n in range(order):
        hermite, before = z * hermite - n * before, hermite
    return (-1) ** order * hermite * torch.exp(-(z**2) / 2) + 1.7**order * torch.sin(1.7 * z + order * math.pi / 2)


def expectation(values: Tensor, z: Tensor) -> float:
    """Of values on a fine, even grid."""
    density = torch.exp(-(z - LOC).abs() / SCALE) / (2 * SCALE)
    return torch.trapezoid(values * density, z).item()


def main() -> None:
    """Compute and draw."""
    z = torch.linspace(LOC - 40 * SCALE, LOC + 40 * SCALE, 400_001, dtype=torch.float64)  # an even number of panels
    weight = ((z - LOC).abs() / SCALE - 1) / SCALE  # the derivative of the log density in the scale
    truth = expectation(cost(z) * weight, z)
    terms = [2 / SCALE * SCALE ** (2 * n) * expectation(derivative(z, 2 * n), z) for n in range(1, TERMS + 1)]
    partial = torch.tensor(terms, dtype=torch.float64).cumsum(0).tolist()

    torch.manual_seed(0)
    scale = torch.full((SAMPLES,), SCALE, dtype=torch.float64, requires_grad=True)
    StochasticBackprop()(Laplace(torch.full_like(scale, LOC).detach(), scale), cost).sum().backward()
    jump, error = scale.grad.mean().item(), scale.grad.std().item() / SAMPLES**0.5

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    line = torch.linspace(-4, 4, 400)
    left.plot(line, cost(line), color="C0", label="$f(z)$")
    left.plot(line, torch.exp(-(line - LOC).abs() / SCALE) / (2 * SCALE), color="0.6", label="Laplace(0.3, 0.8)")
    left.set_xlabel("$z$")
    left.legend(frameon=False)
    orders = [2 * n for n in range(1, TERMS + 1)]
    right.axhline(truth, color="k", linewidth=1, label=f"exact, {truth:.3f}")
    right.plot(orders, partial, "o-", color="C3", label="series")
    right.errorbar([0], [jump], [2 * error], fmt="s", color="C2", label=f"jump form, {jump:.3f} ± {2 * error:.3f}")
    right.set_xticks([0, *orders], ["jump", *map(str, orders)])
    right.set_xlabel("order of the series")
    right.set_ylabel(r"$\partial_b\, E[f(z)]$")
    right.legend(frameon=False)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=150, metadata={"Software": None})
    print(f"exact {truth:.4f}, series {[round(p, 2) for p in partial]}, jump {jump:.4f} ± {error:.4f}")


if __name__ == "__main__":
    main()
