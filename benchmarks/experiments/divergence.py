"""Where the series of stochastic backpropagation diverges and the jump form is right."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Laplace

from benchmarks.charts import save
from benchmarks.experiment import Axis, Context, Experiment, Outcome, Row, Value
from benchmarks.summary import grouped, seeds, stated, table
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
        lines = []
        for (samples,), group in grouped(rows, "samples").items():
            first = group[0]["metrics"]
            jump = seeds(group, "jump")
            errors = [abs(row["metrics"]["jump"] - first["exact"]) / row["metrics"]["jump_error"] for row in group]
            body = [("exact", f"{first['exact']:.4f}", "")]
            body += [(f"series, N = {n}", f"{first[f'series_{n}']:.4f}", "") for n in ORDERS]
            body.append((f"jump form, {samples} samples", stated(jump, 4), "0" if jump is None else str(jump.n)))
            series = [abs(first[f"series_{n}"] - first["exact"]) for n in ORDERS]
            grows = all(one < other for one, other in itertools.pairwise(series))
            lines += [
                f"\nDerivative of E[f] in the scale, f = exp(-z²/2) + sin(1.7 z), z ~ Laplace({LOC}, {SCALE}):",
                *table(("", "derivative", "n"), body),
                f"- The error of the series {'grows' if grows else 'does not grow'} with every term, from "
                f"{series[0]:.2g} to {series[-1]:.2g}; the jump form is off by {max(errors):.1f} of its standard "
                f"errors at most, n = {len(errors)}.",
            ]
        return lines or ["No rows yet."]

    def figures(self, rows: Sequence[Row], folder: Path) -> list[Path]:
        """Draw f, and how the series swings around the derivative, from the rows of most samples."""
        groups = list(grouped(rows, "samples").values())
        return [_drawn(groups[-1], folder / "divergence.png")] if groups else []


def _drawn(rows: Sequence[Row], path: Path) -> Path:
    metrics = rows[0]["metrics"]
    jump = sum(row["metrics"]["jump"] for row in rows) / len(rows)
    error = math.sqrt(sum(row["metrics"]["jump_error"] ** 2 for row in rows)) / len(rows)
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    line = torch.linspace(-4, 4, 400)
    left.plot(line, cost(line), color="C0", label="$f(z)$")
    left.plot(line, density(line), color="0.6", label=f"Laplace({LOC}, {SCALE})")
    left.set_xlabel("$z$")
    left.legend(frameon=False)
    right.axhline(metrics["exact"], color="k", linewidth=1, label=f"exact, {metrics['exact']:.3f}")
    right.plot(ORDERS, [metrics[f"series_{n}"] for n in ORDERS], "o-", color="C3", label="series")
    right.errorbar([0], [jump], [2 * error], fmt="s", color="C2", label=f"jump form, {jump:.3f} ± {2 * error:.3f}")
    right.set_xticks([0, *ORDERS], ["jump", *map(str, ORDERS)])
    right.set(xlabel="order of the series", ylabel=r"$\partial_b\, E[f(z)]$")
    right.legend(frameon=False)
    return save(figure, path)


def cost(z: Tensor) -> Tensor:
    """Return f, smooth and bounded."""
    return torch.exp(-(z**2) / 2) + torch.sin(1.7 * z)


def derivative(z: Tensor, order: int) -> Tensor:
    """Return a derivative of f, by Hermite polynomials."""
    hermite, before = torch.ones_like(z), torch.zeros_like(z)
    for n in range(order):
        hermite, before = z * hermite - n * before, hermite
    bell: Tensor = (-1) ** order * hermite * torch.exp(-(z**2) / 2)
    return bell + 1.7**order * torch.sin(1.7 * z + order * math.pi / 2)


def density(z: Tensor) -> Tensor:
    """Return the density of q."""
    return torch.exp(-(z - LOC).abs() / SCALE) / (2 * SCALE)


def expectation(values: Tensor, z: Tensor) -> float:
    """Return the expectation under q of values on a fine, even grid."""
    return float(torch.trapezoid(values * density(z), z))
