"""How often `compare` is right about bias, and how often figures lie within their errors, where both are known.

`python docs/tables/comparison.py` writes the table into docs/comparison.md. The problems are expectations over three
Bernoulli variables, which are summed; each repetition draws another one.
"""

import math
from collections.abc import Iterator

import torch
from document import write_table
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent

from lightning_estimators import compare
from lightning_estimators.baselines import NoBaseline
from lightning_estimators.comparison import ALARM, Row
from lightning_estimators.estimators import REINFORCE, Estimate, StochasticBackprop
from lightning_estimators.objectives import Objective

REPETITIONS, DRAWS = 200, 200


class Planted(StochasticBackprop):
    """Claims to be unbiased, and is off by a given number in every entry of the gradient."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Return the estimate of stochastic backpropagation, and the shift."""
        estimate = super().estimate(q, leaves, f, context)
        return Estimate(estimate.value, {name: g + self.shift for name, g in estimate.gradients.items()})


class ThreeBits:
    """A cost of three Bernoulli variables, for which all moments are sums over eight points."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits = torch.randn(3, generator=generator, dtype=torch.float64)
        self.weight = torch.randn(3, 3, generator=generator, dtype=torch.float64)
        self.offset = torch.randn(3, generator=generator, dtype=torch.float64)
        self.q = Independent(Bernoulli(logits=self.logits), 1)
        self.points = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
        self.p = self.q.log_prob(self.points).exp()

    def cost(self, b: Tensor) -> Tensor:
        """Return f(b)."""
        return (b @ self.weight * b).sum(-1) + (b @ self.offset).sin()

    def variance(self, estimates: Tensor) -> float:
        """Return the total variance of an estimate, given at the eight points."""
        mean = self.p @ estimates
        return float(self.p @ (estimates - mean).square().sum(-1))

    def score_function(self) -> Tensor:
        """Return the estimate of REINFORCE without a baseline."""
        return self.cost(self.points)[:, None] * (self.points - self.logits.sigmoid())

    def stochastic_backprop(self) -> Tensor:
        """Return the estimate of stochastic backpropagation."""
        slope = self.logits.sigmoid() * (1 - self.logits.sigmoid())
        columns = []
        for j in range(3):
            on, off = self.points.clone(), self.points.clone()
            on[:, j], off[:, j] = 1.0, 0.0
            columns.append(slope[j] * (self.cost(on) - self.cost(off)))
        return torch.stack(columns, -1)


def repetition(seed: int) -> dict[str, tuple[Row, float, float]]:
    """Return, for each estimator, its row and the true variance and squared bias."""
    problem = ThreeBits(seed)
    score, exact_rule = problem.variance(problem.score_function()), problem.variance(problem.stochastic_backprop())
    shift = 0.5 * math.sqrt(exact_rule / 3)  # half a standard deviation of an estimate
    estimators = [REINFORCE(NoBaseline()), StochasticBackprop(), Planted(shift)]
    result = compare((problem.q, problem.cost), estimators=estimators, draws=DRAWS, seed=seed, budget=600.0)
    truth = [(score, 0.0), (exact_rule, 0.0), (exact_rule, 3 * shift**2)]
    names = ("REINFORCE", "StochasticBackprop", "the same, off by half a standard deviation")
    return {n: (row, *known) for n, row, known in zip(names, result.rows, truth, strict=True)}


def lines() -> Iterator[str]:
    """Yield the table."""
    repetitions = [repetition(seed) for seed in range(REPETITIONS)]
    columns = (f"of {REPETITIONS} comparisons, {DRAWS} draws each", f"bias_z > {ALARM:.0f}")
    columns += ("variance within 2 errors", "squared bias within 2 errors")
    yield f"| {' | '.join(columns)} |"
    yield "|---|---|---|---|"
    for name in repetitions[0]:
        found = [one[name] for one in repetitions]
        alarms = sum(row.bias_z > ALARM for row, _, _ in found)
        variance = sum(abs(row.variance - v) <= 2 * row.variance_error for row, v, _ in found)
        bias = sum(abs(row.squared_bias - b) <= 2 * row.squared_bias_error for row, _, b in found)
        yield f"| {name} | {alarms} | {variance} | {bias} |"


if __name__ == "__main__":
    write_table("comparison.md", __file__, lines())
