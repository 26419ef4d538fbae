"""Families of vectors, and latents that interact: against closed forms and quadrature in two dimensions."""

import math

import pytest
import torch
from torch.distributions import (
    Bernoulli,
    Beta,
    Dirichlet,
    Gamma,
    Independent,
    Laplace,
    MultivariateNormal,
    Normal,
    Poisson,
)

from lightning_estimators.baselines import NoBaseline
from lightning_estimators.distributions import sample
from lightning_estimators.estimators import (
    LAX,
    REINFORCE,
    Enumeration,
    GeneralizedReparameterization,
    Pathwise,
    StochasticBackprop,
)
from lightning_estimators.networks import Surrogate
from lightning_estimators.objectives import BernoulliLinear, FirstLayerLinear
from lightning_estimators.testing import COMPARISONS, Report

from .oracle import Case, _range, exact, log_density, panel_nodes, relative_moments
from .test_unbiased import IMPLICIT

F64 = torch.float64
REPORT = Report()
SAMPLES = 200_000

ESTIMATORS = {
    "differences": lambda: StochasticBackprop(f_gradient=False),
    "derivatives": lambda: StochasticBackprop(f_gradient=True),
    "Pathwise": Pathwise,
    "LAX": lambda: LAX(Surrogate(hidden=[3], activation="tanh")),
    "GREP": GeneralizedReparameterization,
    "REINFORCE": lambda: REINFORCE(NoBaseline()),
}


def compare(name, make, truth, f, samples=SAMPLES, slack=1e-9):
    """Estimates of a batch against the gradients in the parameters, in the order of make's arguments."""
    torch.manual_seed(0)
    leaves = [p.detach().expand(samples, *p.shape).clone().requires_grad_() for p, _ in truth]
    estimator = ESTIMATORS[name]().double()
    estimator.prepare(make(*leaves))
    estimator.requires_grad_(requires_grad=False)
    torch.autograd.backward(estimator(make(*leaves), f).sum())
    gradients = {str(i): gradient for i, (_, gradient) in enumerate(truth)}
    moments = relative_moments(gradients, {str(i): leaf.grad for i, leaf in enumerate(leaves)})
    REPORT.unbiased("vectors", name, moments, slack=slack)


def with_gradient(value, *parameters):
    return list(zip(parameters, torch.autograd.grad(value, parameters), strict=True))


# Dirichlet: a quadratic in closed form; others by quadrature over z_0 and z_1 / (1 - z_0), which are independent betas.

ALPHAS = {
    "ordinary": [0.7, 1.5, 3.0],
    "small": [0.02, 0.05, 0.01],
    "large": [200.0, 500.0, 100.0],
    "mixed": [0.05, 500.0, 2.0],
}

MIX = torch.tensor([[2.0, 0.3, -1.0], [0.3, 1.0, 0.5], [-1.0, 0.5, 0.4]], dtype=F64)
LINE = torch.tensor([1.0, -2.0, 0.5], dtype=F64)

DIRICHLET_COSTS = {
    "quadratic": lambda z: (z * LINE).sum(-1) + ((z @ MIX) * z).sum(-1),
    "oscillating": lambda z: torch.sin(3 * z[..., 0] - 2 * z[..., 1]) + torch.tanh(z[..., 2] * z[..., 0]),
    "kinked": lambda z: (z[..., 0] - 0.4).abs() + z[..., 1] * z[..., 2],
}


def dirichlet_truth(alpha, cost):
    alpha = torch.tensor(alpha, dtype=F64, requires_grad=True)
    total = alpha.sum()
    if cost == "quadratic":
        second = (torch.outer(alpha, alpha) + alpha.diag()) / (total * (total + 1))
        return with_gradient((LINE * alpha).sum() / total + (MIX * second).sum(), alpha)
    answers = []
    for panels in (40, 80):
        grids = []
        for a, b, kink in ((alpha[0], alpha[1] + alpha[2], 0.4), (alpha[1], alpha[2], None)):
            case = Case(Beta, {"concentration1": a.item(), "concentration0": b.item()})
            low, high, window = _range(case)
            edges = torch.cat([torch.linspace(low, high, panels), torch.linspace(*window, panels)]).double()
            if kink:
                edges = torch.cat([edges, torch.tensor([kink], dtype=F64).logit()]).clamp(low, high)
            y, w = panel_nodes(edges, 8)
            x, log_q = log_density(case, {"concentration1": a, "concentration0": b}, y)
            grids.append((x, y, w * log_q.exp()))
        (x, _, p), (v, y, q) = grids
        rest = 1 - x[:, None]
        z = torch.stack([x[:, None].expand(-1, len(v)), rest * v, rest * (-y).sigmoid()], -1)
        f = DIRICHLET_COSTS[cost](z)
        answers.append(with_gradient(p @ (f - (p @ f @ q).detach()) @ q, alpha))
    torch.testing.assert_close(answers[0][0][1], answers[1][0][1], rtol=1e-6, atol=1e-7)
    return answers[1]


@pytest.mark.parametrize("name", ["differences", "derivatives", "Pathwise", "REINFORCE"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_dirichlet(alpha, name):
    for cost, f in DIRICHLET_COSTS.items():
        slack = IMPLICIT if name == "Pathwise" else 1e-6
        compare(name, Dirichlet, dirichlet_truth(ALPHAS[alpha], cost), f, 100_000, slack)


@pytest.mark.parametrize("f_gradient", [False, True])
@pytest.mark.parametrize("alpha", [1e-3, 1e-6])
def test_dirichlet_near_zero(alpha, f_gradient):
    """All mass in the corners: right in float64, and no NaN in either precision."""
    truth = dirichlet_truth([alpha, 2 * alpha, alpha], "quadratic")
    if alpha > 1e-5:
        f = DIRICHLET_COSTS["quadratic"]
        compare("derivatives" if f_gradient else "differences", Dirichlet, truth, f, slack=1e-6)
    for dtype in (torch.float32, F64):
        leaf = torch.tensor([alpha, 2 * alpha, alpha], dtype=dtype).repeat(10_000, 1).requires_grad_()
        cost = StochasticBackprop(f_gradient=f_gradient)(Dirichlet(leaf), lambda z: (z[..., 0] - 0.3).square())
        torch.autograd.backward(cost.sum())
        assert cost.isfinite().all()
        assert leaf.grad.isfinite().all()
        beta = [torch.full((10_000,), alpha, dtype=dtype, requires_grad=True) for _ in range(2)]
        torch.autograd.backward(StochasticBackprop(f_gradient=f_gradient)(Beta(*beta), torch.sin).sum())
        assert all(p.grad.isfinite().all() for p in beta)


def test_samples_near_zero_are_corners():
    """Torch's own are the centre wherever every gamma underflows, a tenth of them here."""
    z = sample(Dirichlet(torch.full((20_000, 3), 1e-3)))
    assert ((z > 0.99).sum(-1) == 1).double().mean() > 0.99
    assert (z.sum(-1) - 1).abs().max() < 1e-5
    x = sample(Beta(torch.full((20_000,), 1e-3), torch.full((20_000,), 2e-3)))
    assert abs((x > 0.5).double().mean() - 1 / 3) < 5.5 * (2 / 9 / 20_000) ** 0.5


# Multivariate normal with full covariance: closed forms.

FACTOR = [[0.9, 0.0, 0.0], [-0.5, 1.2, 0.0], [0.3, 0.4, 0.6]]
ONES = torch.ones(3, dtype=F64)


def quadratic(z):
    return ((z @ MIX) * z).sum(-1) + (z * LINE).sum(-1)


def wave(z):
    return torch.sin(z.sum(-1))


def bump(z):
    return torch.exp(-(z - LINE).square().sum(-1) / 2)


def expectation(cost, loc, factor):
    covariance = factor @ factor.T
    if cost is quadratic:
        return loc @ MIX @ loc + (MIX @ covariance).trace() + LINE @ loc
    if cost is wave:
        return torch.sin(loc.sum()) * torch.exp(-(ONES @ covariance @ ONES) / 2)
    wide = torch.eye(3, dtype=F64) + covariance
    return torch.exp(-((loc - LINE) @ torch.linalg.solve(wide, loc - LINE)) / 2) / wide.det().sqrt()


@pytest.mark.parametrize("name", ["derivatives", "Pathwise", "LAX", "REINFORCE"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("cost", [quadratic, wave, bump])
def test_multivariate_normal(cost, scale, name):
    loc = torch.tensor([0.3, -0.2, 0.5], dtype=F64)
    loc, factor = (scale * loc).requires_grad_(), (scale * torch.tensor(FACTOR, dtype=F64)).requires_grad_()
    truth = with_gradient(expectation(cost, loc / scale, factor / scale), loc, factor)
    truth[1] = (factor, truth[1][1].tril())
    compare(name, lambda m, f: MultivariateNormal(m, scale_tril=f.tril()), truth, lambda z: cost(z / scale), 100_000)


# Latents that interact in a cost with structure: quadrature over the plane.

WEIGHT = torch.tensor([[1.5, -1.0], [0.4, 2.0], [-1.2, 0.7]], dtype=F64)
BIAS = torch.tensor([0.2, -0.5, 0.1], dtype=F64)
TARGET = torch.tensor([1.0, 0.0, 1.0], dtype=F64)

STRUCTURED = {
    "linear": BernoulliLinear(WEIGHT, BIAS, TARGET),
    "network": FirstLayerLinear(WEIGHT, BIAS, lambda h: h.tanh().sum(-1).square() + h[..., 0].sin()),
    "callable": lambda z: torch.sin(z[..., 0] * z[..., 1]) + (z[..., 0] - z[..., 1]).tanh(),
}

PLANE = {
    "laplace": (Laplace, [{"loc": 0.1, "scale": 0.3}, {"loc": -0.3, "scale": 0.9}]),
    "normal": (Normal, [{"loc": 0.1, "scale": 0.3}, {"loc": -0.3, "scale": 0.9}]),
    "gamma": (Gamma, [{"concentration": 0.7, "rate": 2.0}, {"concentration": 2.5, "rate": 3.0}]),
    "beta": (Beta, [{"concentration1": 0.7, "concentration0": 2.0}, {"concentration1": 2.5, "concentration0": 0.4}]),
    "poisson": (Poisson, [{"rate": 0.7}, {"rate": 2.5}]),
}


def plane_truth(family, cost):
    kind, settings = PLANE[family]
    names = list(settings[0])
    p = {n: torch.tensor([s[n] for s in settings], dtype=F64, requires_grad=True) for n in names}
    answers = []
    for panels in (50, 100):
        grids = []
        for j, setting in enumerate(settings):
            case = Case(kind, setting)
            mine = {n: p[n][j] for n in names}
            if kind is Poisson:
                y = torch.arange(60.0, dtype=F64)
                w = torch.ones_like(y)
            else:
                low, high, window = _range(case)
                y, w = panel_nodes(torch.cat([torch.linspace(low, high, panels), torch.linspace(*window, panels)]), 8)
            z, log_q = log_density(case, mine, y.double())
            grids.append((z, w * log_q.exp()))
        (x, a), (y, b) = grids
        f = cost(torch.stack(torch.meshgrid(x, y, indexing="ij"), -1)).detach()
        answers.append(with_gradient(a @ (f - (a @ f @ b).detach()) @ b, *p.values()))
    for (_, coarse), (_, fine) in zip(*answers, strict=True):
        torch.testing.assert_close(coarse, fine, rtol=1e-6, atol=1e-7)
    return answers[1]


def accepts(name, family):
    if name == "derivatives":
        return family != "poisson"
    if name == "differences":
        return True
    return {"GREP": family in ("gamma", "beta"), "REINFORCE": True}.get(name, family != "poisson")


@pytest.mark.parametrize("cost", STRUCTURED)
@pytest.mark.parametrize(("family", "name"), [(f, n) for f in PLANE for n in ESTIMATORS if accepts(n, f)])
def test_interacting_latents(family, name, cost):
    kind = PLANE[family][0]
    implicit = family in ("gamma", "beta") and name in ("Pathwise", "LAX")
    truth = plane_truth(family, STRUCTURED[cost])
    make = lambda *leaves: Independent(kind(*leaves), 1)  # noqa: E731
    compare(name, make, truth, STRUCTURED[cost], 50_000, IMPLICIT if implicit else 1e-6)


# Estimators inside one another.

INNER = {
    "enumeration": Enumeration,
    "differences": StochasticBackprop,
    "score": lambda: REINFORCE(NoBaseline()),
}


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("family", ["normal", "laplace", "gamma", "multivariate"])
def test_a_discrete_layer_inside(family, inner):
    """E[3 σ(z)], of which an estimate inside hides the second derivative."""
    estimator = INNER[inner]()

    def f(z):
        z = z.sum(-1) if family == "multivariate" else z
        return estimator(Bernoulli(logits=z), lambda b: 3 * b)

    if family == "multivariate":
        # z_0 + z_1 is normal with variance |Lᵀ1|²
        x, w = panel_nodes(torch.linspace(-12, 12, 100).double())
        weight = w * torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
        loc = torch.tensor([0.7, 0.5], dtype=F64, requires_grad=True)
        factor = torch.tensor([[0.3, 0.0], [0.4, 0.2]], dtype=F64, requires_grad=True)
        deviation = (factor.T @ ONES[:2]).square().sum().sqrt()
        truth = with_gradient((weight * 3 * torch.sigmoid(loc.sum() + deviation * x)).sum(), loc, factor)
        truth[1] = (factor, truth[1][1].tril())
        compare("derivatives", lambda m, s: MultivariateNormal(m, scale_tril=s), truth, f, 100_000)
        return
    kind, settings = PLANE[family]
    case = Case(kind, {"loc": 1.2, "scale": 0.3} if family == "normal" else settings[1])
    truth = exact(case, lambda z: 3 * z.sigmoid())
    pairs = [(torch.tensor(v, dtype=F64), truth[n]) for n, v in case.parameters.items()]
    compare("derivatives", kind, pairs, f, 100_000)


def test_a_continuous_layer_inside():
    """Gamma in normal in gamma: E[x] of x ~ Γ(exp(y), 1), y ~ N(z, 1), z ~ Γ(k, r) is E[exp(z + 1/2)]."""
    estimators = [StochasticBackprop() for _ in range(3)]

    def f(z):
        return estimators[1](
            Normal(z, torch.ones_like(z)),
            lambda y: estimators[2](Gamma(y.exp(), torch.ones_like(y)), lambda x: x),
        )

    k, r = (torch.tensor(v, dtype=F64, requires_grad=True) for v in (1.5, 5.0))
    truth = with_gradient(math.exp(0.5) * (1 - 1 / r) ** -k, k, r)
    compare("derivatives", Gamma, truth, f, 100_000)


def test_the_bound_covers_all_comparisons():
    assert REPORT.comparisons <= COMPARISONS
