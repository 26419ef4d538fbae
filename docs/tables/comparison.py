"""How often `compare` is right about bias, and how often figures lie within their errors, where both are known.

`python docs/tables/comparison.py` writes the table into docs/comparison.md. Each repetition draws other parameters of
each problem. The true variances are sums over all values of Bernoulli variables, closed forms, or quadrature.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from document import write_table
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent, Normal

from lightning_estimators import compare
from lightning_estimators.baselines import NoBaseline
from lightning_estimators.comparison import ALARM, Row
from lightning_estimators.estimators import REINFORCE, Estimate, GradientEstimator, Pathwise, StochasticBackprop
from lightning_estimators.objectives import Objective, SquaredCost

REPETITIONS = 200

Known = tuple[str, GradientEstimator, float, float]
"""Name, estimator, and its true variance and squared bias."""

Problem = tuple[tuple[Distribution, Callable[[Tensor], Tensor]], list[Known]]


class Planted(StochasticBackprop):
    """Claims to be unbiased, and is off by a given number in every entry of the gradient."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Return the estimate of stochastic backpropagation, and the shift."""
        estimate = super().estimate(q, leaves, f, context)
        return Estimate(estimate.value, {name: g + self.shift for name, g in estimate.gradients.items()})


class PlantedPathwise(Pathwise):
    """The same on pathwise gradients."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Return the pathwise value, with a slope in every parameter."""
        value = super().estimate(q, leaves, f, context).value
        slopes = [(leaf - leaf.detach()).flatten(value.ndim).sum(-1) for leaf in leaves.values()]
        return Estimate(value + self.shift * torch.stack(slopes).sum(0))


def half_a_deviation(variance: float, entries: int) -> float:
    """Return half a standard deviation of an entry of an estimate."""
    return 0.5 * math.sqrt(variance / entries)


def bits(generator: torch.Generator) -> Problem:
    """Return a quadratic cost of three Bernoulli variables, of which all moments are sums over eight points."""
    logits, weight, offset = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((3,), (3, 3), (3,)))
    q = Independent(Bernoulli(logits=logits), 1)
    points = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
    probability, slope = q.log_prob(points).exp(), logits.sigmoid() * (1 - logits.sigmoid())

    def cost(b: Tensor) -> Tensor:
        return (b @ weight * b).sum(-1) + (b @ offset).sin()

    def variance(estimates: Tensor) -> float:
        mean = probability @ estimates
        return float(probability @ (estimates - mean).square().sum(-1))

    columns = []
    for j in range(3):
        on, off = points.clone(), points.clone()
        on[:, j], off[:, j] = 1.0, 0.0
        columns.append(slope[j] * (cost(on) - cost(off)))
    score = variance(cost(points)[:, None] * (points - logits.sigmoid()))
    rule = variance(torch.stack(columns, -1))
    shift = half_a_deviation(rule, 3)
    return (q, cost), [
        ("REINFORCE", REINFORCE(NoBaseline()), score, 0.0),
        ("StochasticBackprop", StochasticBackprop(), rule, 0.0),
        ("the same, off by half a standard deviation", Planted(shift), rule, 3 * shift**2),
    ]


def toy(generator: torch.Generator) -> Problem:
    """Return the toy of Tucker et al. (2017): one Bernoulli variable b, E[(b - t)²]."""
    p, t = 0.1 + 0.8 * torch.rand(2, generator=generator, dtype=torch.float64)
    q = Independent(Bernoulli(probs=p.reshape(1)), 1)
    q = Independent(Bernoulli(logits=q.base_dist.logits), 1)
    on, off = (1 - t) ** 2 * (1 - p), t**2 * -p
    score = float(p * (1 - p) * (on - off) ** 2)
    return (q, lambda b: (b - t).square().sum(-1)), [("REINFORCE", REINFORCE(NoBaseline()), score, 0.0)]


def linear_gaussian(generator: torch.Generator) -> Problem:
    """Return E[|z|²] of two normal variables: the pathwise gradient is 2 z in the location, and 2 z ε in the scale."""
    loc, scale = torch.randn(2, generator=generator), 0.5 + torch.rand(2, generator=generator)
    variance = float((4 * scale.square() + 4 * loc.square() + 8 * scale.square()).sum())
    shift = half_a_deviation(variance, 4)
    return (Independent(Normal(loc, scale), 1), SquaredCost(torch.zeros(2))), [
        ("Pathwise", Pathwise(), variance, 0.0),
        ("the same, off by half a standard deviation", PlantedPathwise(shift), variance, 4 * shift**2),
    ]


def wave(generator: torch.Generator) -> Problem:
    """Return E[sin(a z)] of one normal variable, whose moments are integrals; its reference has to be pooled."""
    loc, scale, a = (float(x) for x in 0.5 + torch.rand(3, generator=generator, dtype=torch.float64))
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()

    def variance(*entries: np.ndarray) -> float:
        return float(sum(weights @ (e - weights @ e) ** 2 for e in entries))

    z = loc + scale * nodes
    path = variance(a * np.cos(a * z), a * np.cos(a * z) * nodes)
    score = variance(np.sin(a * z) * nodes / scale, np.sin(a * z) * (nodes**2 - 1) / scale)
    shift = half_a_deviation(path, 2)
    q = Independent(Normal(torch.tensor([loc]), torch.tensor([scale])), 1)
    return (q, lambda x: (a * x).sin().sum(-1)), [
        ("REINFORCE", REINFORCE(NoBaseline()), score, 0.0),
        ("Pathwise", Pathwise(), path, 0.0),
        ("the same, off by half a standard deviation", PlantedPathwise(shift), path, 2 * shift**2),
    ]


PROBLEMS = {
    "three Bernoulli variables, exact reference": (bits, 200),
    "the toy, one Bernoulli variable, exact reference": (toy, 100),
    "two normal variables, quadratic cost, exact reference": (linear_gaussian, 100),
    "one normal variable, a wave, pooled reference": (wave, 100),
}
"""What makes a problem, and the draws of each estimator."""


def repetition(
    make: Callable[[torch.Generator], Problem], draws: int, seed: int
) -> list[tuple[str, Row, float, float]]:
    """Return, for each estimator, its name, its row, and its true variance and squared bias."""
    subject, known = make(torch.Generator().manual_seed(seed))
    estimators = [estimator for _, estimator, _, _ in known]
    result = compare(subject, estimators=estimators, draws=draws, seed=seed, budget=600.0, progress=False)
    return [(name, row, v, b) for (name, _, v, b), row in zip(known, result.rows, strict=True)]


def lines() -> Iterator[str]:
    """Yield the table."""
    columns = ("estimator", f"bias_z > {ALARM:.0f}", "variance within 2 errors", "squared bias within 2 errors")
    yield f"| {' | '.join(columns)} |"
    yield "|---|---|---|---|"
    for title, (make, draws) in PROBLEMS.items():
        yield f"| *{title}; {draws} draws* | | | |"
        repetitions = [repetition(make, draws, seed) for seed in range(REPETITIONS)]
        for found in zip(*repetitions, strict=True):
            alarms = sum(row.bias_z > ALARM for _, row, _, _ in found)
            variance = sum(abs(row.variance - v) <= 2 * row.variance_error for _, row, v, _ in found)
            bias = sum(abs(row.squared_bias - b) <= 2 * row.squared_bias_error for _, row, _, b in found)
            yield f"| {found[0][0]} | {alarms} | {variance} | {bias} |"


if __name__ == "__main__":
    write_table("comparison.md", __file__, lines())
