"""Where the series of stochastic backpropagation diverges, and its jump form does not."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Laplace

from benchmarks.comparison import Claim, Finding, grouped, seeds, stated, table
from benchmarks.experiment import Axis, Experiment, Outcome, Row, Value
from benchmarks.figures import save
from lightning_estimators.estimators import StochasticBackprop

__all__ = ["Divergence"]

LOC, SCALE = 0.3, 0.8
ORDERS = (2, 4, 6, 8, 10)
SERIES = {order: f"series_{order}" for order in ORDERS}
"""Names of the metrics by the order at which the series is truncated."""


def _series(rows: Sequence[Row]) -> Iterator[Finding]:
    for row in rows[:1]:  # the series does not depend on the seed
        exact, values = row["metrics"]["exact"], [row["metrics"][name] for name in SERIES.values()]
        grows = all(abs(one - exact) < abs(other - exact) for one, other in itertools.pairwise(values))
        text = (
            f"for z ~ Laplace({LOC}, {SCALE}) and f(z) = exp(−z²/2) + sin(1.7 z), smooth and bounded, the derivative "
            f"of E[f(z)] in the scale is {exact:.3f}; truncated at N = {', '.join(map(str, ORDERS))}, the series gives "
            f"{', '.join(f'{value:.2f}' for value in values)}, "
            f"and its error {'grows with every term' if grows else 'does not grow with every term'}"
        )
        yield Finding("", "series", "holds" if grows else "does not hold", text)


def _jump(rows: Sequence[Row]) -> Iterator[Finding]:
    """Judge whether the jump form is within three of its standard errors for every seed."""
    off = [abs(row["metrics"]["jump"] - row["metrics"]["exact"]) / row["metrics"]["jump_error"] for row in rows]
    if off:
        text = f"it is off by at most {max(off):.1f} of its standard errors in {len(off)} seeds"
        yield Finding("", "jump form", "holds" if max(off) < 3 else "does not hold", text)


class Divergence(Experiment):
    """The derivative of the mean of a smooth and bounded f in the scale of a Laplace variable; not in the papers."""

    name = "divergence"
    title = "Divergence of the series"
    summary = "The truncated series and the jump form for a smooth and bounded f (not in the papers)."
    claims = (
        Claim("Does the truncated series diverge?", "It can, for a smooth and bounded f.", None, _series),
        Claim("Is the jump form right there?", "Its mean is the exact derivative.", None, _jump),
    )
    axes: ClassVar[dict[str, Axis]] = {
        "samples": Axis((200_000,), (2000,), "estimates by the jump form"),
        "seed": Axis((0, 1, 2, 3, 4), (0, 1), "seed of the noise"),
    }

    def run(self, settings: Mapping[str, Value], folder: Path, data_root: str) -> Outcome:
        """Integrate the exact derivative and the series; sample the jump form."""
        begin = time.monotonic()
        z = torch.linspace(LOC - 40 * SCALE, LOC + 40 * SCALE, 400_001, dtype=torch.float64)  # an even number of panels
        weight = ((z - LOC).abs() / SCALE - 1) / SCALE  # the derivative of the log density in the scale
        metrics = {"exact": expectation(cost(z) * weight, z)}
        total = 0.0
        for order, name in SERIES.items():
            total += 2 / SCALE * SCALE**order * expectation(derivative(z, order), z)
            metrics[name] = total
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
        lines: list[str] = []
        for (samples,), group in grouped(rows, "samples").items():
            jump, figures = seeds(group, "jump"), [group[0]["metrics"][name] for name in ("exact", *SERIES.values())]
            head = ["", "exact", *(f"series, N = {n}" for n in ORDERS), f"jump form, {samples} samples", "seeds"]
            cells = [*(f"{figure:.4f}" for figure in figures), stated(jump, 4), str(jump.n if jump else 0)]
            lines += table(head, [["derivative of E[f(z)] in the scale", *cells]])
        return lines

    def figures(self, rows: Sequence[Row], folder: Path) -> list[Path]:
        """Draw f, and how the series swings around the derivative, from the rows of most samples."""
        if not rows:
            return []
        part = list(grouped(rows, "samples").values())[-1]
        metrics, jump = part[0]["metrics"], sum(row["metrics"]["jump"] for row in part) / len(part)
        error = math.sqrt(sum(row["metrics"]["jump_error"] ** 2 for row in part)) / len(part)
        figure = Figure(figsize=(8, 3), layout="constrained")
        left, right = figure.subplots(1, 2)
        line = torch.linspace(-4, 4, 400)
        left.plot(line, cost(line), color="C0", label="$f(z)$")
        left.plot(line, density(line), color="0.6", label=f"Laplace({LOC}, {SCALE})")
        left.set_xlabel("$z$")
        left.legend(frameon=False)
        right.axhline(metrics["exact"], color="k", linewidth=1, label=f"exact, {metrics['exact']:.3f}")
        right.plot(ORDERS, [metrics[name] for name in SERIES.values()], "o-", color="C3", label="series")
        right.errorbar([0], [jump], [2 * error], fmt="s", color="C2", label=f"jump form, {jump:.3f} ± {2 * error:.3f}")
        right.set_xticks([0, *ORDERS], ["jump", *map(str, ORDERS)])
        right.set(xlabel="order of the series", ylabel=r"$\partial_b\, E[f(z)]$")
        right.legend(frameon=False)
        return [save(figure, folder / "divergence.png")]


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
