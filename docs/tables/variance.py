"""Measure the variance of one-sample gradients, and write the table in docs/stochastic_backpropagation.md.

Run as `python docs/tables/variance.py`. Seeds are fixed. It takes minutes on one core, most of them to train
the control variates of LAX.
"""

from collections.abc import Callable, Iterator

import torch
from document import write_table
from torch import Tensor
from torch.distributions import (
    Beta,
    Dirichlet,
    Distribution,
    Gamma,
    Independent,
    Laplace,
    NegativeBinomial,
    Normal,
    Poisson,
)

from lightning_estimators.baselines import NoBaseline
from lightning_estimators.estimators import (
    LAX,
    REINFORCE,
    GeneralizedReparameterization,
    GradientEstimator,
    Pathwise,
    StochasticBackprop,
)
from lightning_estimators.moments import GradientMoments
from lightning_estimators.networks import Surrogate
from lightning_estimators.objectives import BernoulliLinear, ExponentialCost, Separable, SquaredCost

SAMPLES = 100_000
STEPS = 500
"""Steps of Adam, at a learning rate of 0.01, that train the control variate of LAX with batches of 200."""

Cost = Callable[[Tensor], Tensor]
Make = Callable[..., Distribution]

OURS = ("summed", "f'", "differences")
COLUMNS = (*OURS, "pathwise", "LAX", "G-REP", "score")


def estimators() -> dict[str, GradientEstimator]:
    """Return one estimator for each column."""
    return {
        "summed": StochasticBackprop(),
        "f'": StochasticBackprop(f_gradient=True),
        "differences": StochasticBackprop(f_gradient=False),
        "pathwise": Pathwise(),
        "LAX": LAX(Surrogate(hidden=[10], activation="tanh")),
        "G-REP": GeneralizedReparameterization(),
        "score": REINFORCE(NoBaseline()),
    }


def costs(event_dim: int) -> dict[str, Cost]:
    """Return the costs by their names in the table."""

    def total(g: Cost) -> Cost:
        return lambda z: g(z).sum(-1) if event_dim else g(z)

    return {
        "(z − .49)²": SquaredCost(0.49, event_dim),
        "exp(−.49 z)": ExponentialCost(-0.49, event_dim),
        "sin 1.7z": total(lambda z: torch.sin(1.7 * z)),
        "\\|z − .7\\|": total(lambda z: (z - 0.7).abs()),
        "1[z > .7]": total(lambda z: (z.detach() > 0.7).to(z.dtype)),
    }


def plain(f: Cost) -> Cost:
    """Return the same cost without its structure, of which estimators then know nothing."""
    return lambda z: f(z)


def run(estimator: GradientEstimator, make: Make, parameters: list[Tensor], f: Cost, batch: int) -> list[Tensor]:
    """Return independent estimates of the gradient in each parameter."""
    leaves = [p.expand(batch, *p.shape).clone().requires_grad_() for p in parameters]
    estimator(make(*leaves), f).sum().backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in leaves]


def variance(column: str, make: Make, parameters: list[Tensor], f: Cost) -> float | None:
    """Return the variance summed over parameters, or None where the estimator is not possible."""
    torch.manual_seed(0)
    estimator = estimators()[column].double()
    q = make(*(p.expand(1, *p.shape) for p in parameters))
    structured = getattr(f, "degree", None) is not None or isinstance(f, ExponentialCost)
    if column == "summed" and (not structured or isinstance(q, Beta | Dirichlet)):
        return None
    try:
        estimator.prepare(q)
        if isinstance(estimator, LAX):
            optimizer = torch.optim.Adam(estimator.parameters(), lr=0.01)
            for _ in range(STEPS):
                optimizer.zero_grad()
                run(estimator, make, parameters, f, 200)
                optimizer.step()
        estimator.requires_grad_(requires_grad=False)
        if not isinstance(f, BernoulliLinear | Separable) and column != "summed":
            f = plain(f)
        gradients = run(estimator, make, parameters, f, SAMPLES)
    except (TypeError, ValueError):  # no rule, or f cannot be differentiated
        return None
    moments = GradientMoments()
    moments.update({str(index): gradient for index, gradient in enumerate(gradients)})
    return sum(moments.statistics(name).total_variance.item() for name in moments)


def problems() -> list[tuple[str, Make, list[Tensor], dict[str, Cost]]]:
    """Return name, distribution, parameters and costs of each group of rows."""

    def p(*values: float | list[float]) -> list[Tensor]:
        return [torch.tensor(v, dtype=torch.float64) for v in values]

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 20, generator=generator, dtype=torch.float64)
    bias, target = torch.zeros(50, dtype=torch.float64), (torch.arange(50) % 2).double()
    likelihood = {"logistic regression": BernoulliLinear(weight, bias, target)}
    loc, scale = torch.zeros(20, dtype=torch.float64), torch.full((20,), 0.3, dtype=torch.float64)
    simplex = {"(z₀ − .49)²": lambda z: (z[..., 0] - 0.49).square(), "sin 3z₀": lambda z: torch.sin(3 * z[..., 0])}
    return [
        ("Laplace(.3, .8)", Laplace, p(0.3, 0.8), costs(0)),
        ("Normal(.3, .8)", Normal, p(0.3, 0.8), costs(0)),
        ("Gamma(.3, 1)", Gamma, p(0.3, 1.0), costs(0)),
        ("Gamma(3, 2)", Gamma, p(3.0, 2.0), costs(0)),
        ("Beta(.7, 1.9)", Beta, p(0.7, 1.9), costs(0)),
        ("Dirichlet(.1, .1, .1)", Dirichlet, p([0.1, 0.1, 0.1]), simplex),
        ("Dirichlet(7, 15, 30)", Dirichlet, p([7.0, 15.0, 30.0]), simplex),
        ("Poisson(2.5)", Poisson, p(2.5), costs(0)),
        ("NegativeBinomial(3, .4)", lambda r, logits: NegativeBinomial(r, logits=logits), p(3.0, -0.405), costs(0)),
        ("20 × Laplace(0, .3)", lambda m, b: Independent(Laplace(m, b), 1), [loc, scale], likelihood),
        ("20 × Normal(0, .3)", lambda m, s: Independent(Normal(m, s), 1), [loc, scale], likelihood),
    ]


def row(name: str, make: Make, parameters: list[Tensor], cost: str, f: Cost) -> str:
    """Return a line of the table."""
    found = {column: variance(column, make, parameters, f) for column in COLUMNS}
    biased = {"f'"} if cost.startswith("\\|") and name.startswith("Normal") else set()  # Price's rule at a kink
    fair = {column: v for column, v in found.items() if v is not None and column not in biased}
    best = min(fair.values())
    cells = []
    for column, v in found.items():
        cell = "–" if v is None else "biased" if column in biased else f"{v:.3g}"
        cells.append(f"**{cell}**" if v == best and column not in biased else cell)
    ours = min((v for column, v in fair.items() if column in OURS), default=float("inf"))
    others = min((v for column, v in fair.items() if column not in OURS), default=float("inf"))
    mark = "loses" if ours > 1.02 * others else ""  # the measurement is good to about a hundredth
    return f"| {name} | {cost} | " + " | ".join(cells) + f" | {mark} |"


def rows() -> Iterator[str]:
    """Yield the lines of the table."""
    yield "| q | f | " + " | ".join(COLUMNS) + " | |\n|---|---|" + "---|" * (len(COLUMNS) + 1)
    for name, make, parameters, by_cost in problems():
        for cost, f in by_cost.items():
            yield row(name, make, parameters, cost, f)


if __name__ == "__main__":
    write_table("stochastic_backpropagation.md", __file__, rows())
