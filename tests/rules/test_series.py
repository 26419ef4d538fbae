"""The series: its coefficients, where it ends, where it converges, and where it diverges."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch.distributions import (
    Beta,
    Dirichlet,
    Exponential,
    Gamma,
    Independent,
    Laplace,
    NegativeBinomial,
    Normal,
    Poisson,
)

from lightning_estimators.distributions import standard_gamma
from lightning_estimators.estimators import StochasticBackprop
from lightning_estimators.objectives import CallableObjective, ExponentialCost, Objective, SquaredCost, Sum
from lightning_estimators.rules import Jet
from lightning_estimators.rules.counts import negative_binomial_cumulant, poisson_cumulant
from lightning_estimators.rules.gamma import gamma_cumulant
from lightning_estimators.rules.laplace import laplace_cumulant
from lightning_estimators.rules.normal import normal_cumulant
from lightning_estimators.rules.series import exponential_rule, series_coefficients, series_rule
from lightning_estimators.testing import Moments, Report

from .oracle import Case, exact, relative_moments

F64 = torch.float64
ORDER = 8
SAMPLES = 200_000
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "stochastic_backpropagation.md"


def number(x):
    return torch.tensor(x, dtype=F64)


def stirling(n, k):
    """Of the second kind."""
    return sum((-1) ** (k - j) * math.comb(k, j) * j**n for j in range(k + 1)) // math.factorial(k)


CLOSED_FORMS = {
    "normal": (  # eq. 14
        normal_cumulant,
        {"loc": 0.3, "scale": 0.8},
        {"loc": lambda n: float(n == 1), "scale": lambda n: 0.8 * (n == 2)},
    ),
    "laplace": (  # eq. 18
        laplace_cumulant,
        {"loc": 0.3, "scale": 0.8},
        {"loc": lambda n: float(n == 1), "scale": lambda n: 0.0 if n % 2 else 2 / 0.8 * 0.8**n},
    ),
    "gamma": (  # eq. 19, with scale 1 / rate and d scale / d rate = -scale^2
        gamma_cumulant,
        {"concentration": 3.0, "rate": 0.5},
        {"concentration": lambda n: 2.0**n / n, "rate": lambda n: -3.0 * 2.0 ** (n + 1)},
    ),
    "exponential": (gamma_cumulant, {"rate": 0.5}, {"rate": lambda n: -(2.0 ** (n + 1))}),
    "chi-squared": (gamma_cumulant, {"df": 3.0}, {"df": lambda n: 2.0**n / n / 2}),
    "poisson": (poisson_cumulant, {"rate": 1.7}, {"rate": lambda n: 1 / math.factorial(n)}),
}


@pytest.mark.parametrize("family", CLOSED_FORMS)
def test_coefficients_are_those_of_the_paper(family):
    cumulant, parameters, closed = CLOSED_FORMS[family]
    found = series_coefficients(cumulant, {name: number(v) for name, v in parameters.items()}, ORDER)
    assert set(found) == set(closed)
    for name, form in closed.items():
        expected = torch.tensor([form(n) for n in range(1, ORDER + 1)], dtype=F64)
        torch.testing.assert_close(torch.stack(found[name]), expected, rtol=1e-8, atol=1e-8)


def test_coefficients_of_the_negative_binomial():
    """∂_r K = log(1 - p) - log(1 - p e^t), whose Taylor coefficients are sums of Stirling numbers of p / (1 - p)."""
    r, p = 2.0, 0.4
    parameters = {"total_count": number(r), "logits": number(p).logit()}
    found = series_coefficients(negative_binomial_cumulant, parameters, ORDER)
    odds = p / (1 - p)
    for n in range(1, ORDER + 1):
        # d/dt^n of -log(1 - odds (e^t - 1)) is the sum over k of S(n, k) (k - 1)! odds^k; and d odds = odds d logits.
        by_count = sum(stirling(n, k) * math.factorial(k - 1) * odds**k for k in range(1, n + 1)) / math.factorial(n)
        by_odds = sum(stirling(n, k) * math.factorial(k) * odds ** (k - 1) for k in range(1, n + 1)) / math.factorial(n)
        torch.testing.assert_close(found["total_count"][n - 1], number(by_count), rtol=1e-8, atol=0)
        torch.testing.assert_close(found["logits"][n - 1], number(r * by_odds * odds), rtol=1e-8, atol=0)


FUNCTIONS = {
    "arithmetic": lambda p, t: (2 - p * t) * (t + 1) / (3 + t) - t / p + 1 / (1 + t) - (-t),
    "powers": lambda p, t: (p + t) ** 3 + (1 + p * t) ** -1.5 + (p * t) ** 2 + torch.square(t) + (1 + t) ** p,
    "exp": lambda p, t: torch.exp(p * t) + torch.expm1(t * p + 0.3) + (p + t).exp(),
    "log": lambda p, t: torch.log(p + t) + torch.log1p(p * t) + (2 + t * t).log(),
    "sqrt": lambda p, t: p * (1 - torch.sqrt(1 - 2 * t / p)) + torch.sigmoid(p + t),
    "laplace": lambda p, t: laplace_cumulant({"loc": p, "scale": p}, t),
    "gamma": lambda p, t: gamma_cumulant({"concentration": p**2, "rate": p}, t),
    "negative binomial": lambda p, t: negative_binomial_cumulant({"total_count": p**2, "logits": p}, t),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jets_agree_with_nested_differentiation(name):
    p = torch.tensor([0.7, 1.9], dtype=F64, requires_grad=True)
    zero = torch.zeros(2, dtype=F64)
    jet = FUNCTIONS[name](p, Jet([zero, zero + 1, *[zero] * 5]))
    t = zero.clone().requires_grad_()
    value = FUNCTIONS[name](p, t)
    for n, coefficient in enumerate(jet.coefficients):
        torch.testing.assert_close(coefficient, value / math.factorial(n), rtol=1e-9, atol=1e-9)
        if value.requires_grad and coefficient.requires_grad:
            by_p = [
                torch.autograd.grad(c.sum(), p, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
                for c in (coefficient, value)
            ]
            torch.testing.assert_close(by_p[0], by_p[1] / math.factorial(n), rtol=1e-9, atol=1e-9)
        if value.requires_grad:
            (value,) = torch.autograd.grad(value.sum(), t, create_graph=True, allow_unused=True, materialize_grads=True)


def test_jets_refuse_what_they_do_not_know():
    with pytest.raises(TypeError):
        torch.erf(Jet([number(0.0), number(1.0)]))


class Bump(Objective):
    """exp(-z²/2) + sin(1.7 z), with its derivatives by Hermite polynomials."""

    event_dim, closed_derivatives = 0, True

    def value(self, z):
        return torch.exp(-(z**2) / 2) + torch.sin(1.7 * z)

    def coordinate_derivative(self, z, order=1):
        hermite, before = torch.ones_like(z), torch.zeros_like(z)
        for n in range(order):
            hermite, before = z * hermite - n * before, hermite
        return (-1) ** order * hermite * torch.exp(-(z**2) / 2) + 1.7**order * torch.sin(1.7 * z + order * math.pi / 2)


LAPLACE = Case(Laplace, {"loc": 0.3, "scale": 0.8})


@pytest.mark.parametrize("order", range(1, 5))
def test_derivatives_of_the_bump(order):
    z = torch.randn(5, dtype=F64)
    expected = CallableObjective(Bump().value, 0).coordinate_derivative(z, order)
    torch.testing.assert_close(Bump().coordinate_derivative(z, order), expected)


def moments(estimator, case, f, samples=SAMPLES):
    leaves = case.leaves(samples)
    torch.autograd.backward(estimator(case.family(**leaves), f).sum())
    return relative_moments(exact(case, f), {name: p.grad for name, p in leaves.items()})


@pytest.mark.parametrize(("order", "value"), [(2, -1.42), (4, 0.80), (8, 6.7)])
def test_the_series_diverges(order, value):
    found = moments(StochasticBackprop("series", order), LAPLACE, Bump())
    mean, se = found.error("scale")
    unit = exact(LAPLACE, Bump())["scale"].abs()
    assert abs(unit * (mean + found.exact["scale"]) - value) < 0.01 * abs(value) + 5.5 * unit * se
    Report().biased("divergence", str(LAPLACE), found)
    assert not StochasticBackprop("series", order).is_unbiased(Laplace(*LAPLACE.leaves(1).values()))


def test_where_it_diverges_the_jump_form_is_right():
    assert round(exact(LAPLACE, Bump())["scale"].item(), 3) == -0.618
    for f_gradient in (True, False):
        found = moments(StochasticBackprop(f_gradient=f_gradient), LAPLACE, lambda z: Bump().value(z))
        Report().unbiased("divergence", str(LAPLACE), found)


SLOW = {
    "laplace": LAPLACE,
    "gamma": Case(Gamma, {"concentration": 1.7, "rate": 2.0}),
    "exponential": Case(Exponential, {"rate": 2.0}),
    "poisson": Case(Poisson, {"rate": 2.5}),
    "negative_binomial": Case(NegativeBinomial, {"total_count": 3.0, "logits": -1.4}),
}


class Sine(Objective):
    """sin(0.4 z): slow on the scale of every family here."""

    event_dim, closed_derivatives = 0, True

    def value(self, z):
        return torch.sin(0.4 * z)

    def coordinate_derivative(self, z, order=1):
        return 0.4**order * torch.sin(0.4 * z + order * math.pi / 2)


@pytest.mark.parametrize("family", SLOW)
def test_where_it_converges_more_terms_take_it_to_the_gradient(family):
    found = moments(StochasticBackprop("series", 16), SLOW[family], Sine(), samples=50_000)
    Report().unbiased("series", family, found, slack=1e-6)
    short = moments(StochasticBackprop("series", 2), SLOW[family], Sine())
    Report().biased("truncated series", family, short)


class Cubic(Objective):
    event_dim, closed_derivatives = 0, True

    def value(self, z):
        return 0.3 * z**3 - z**2

    def coordinate_derivative(self, z, order=1):
        closed = [0.9 * z**2 - 2 * z, 1.8 * z - 2, torch.full_like(z, 1.8)]
        return closed[order - 1] if order <= 3 else torch.zeros_like(z)


ENDING = {**SLOW, "normal": Case(Normal, {"loc": 0.3, "scale": 0.8})}


@pytest.mark.parametrize("family", ENDING)
def test_polynomials_end_it(family):
    found = moments(StochasticBackprop("series", 3), ENDING[family], Cubic())
    Report().unbiased("series", family, found)


@pytest.mark.parametrize("family", ["gamma", "poisson", "negative_binomial"])
def test_one_term_short_of_the_end_is_biased(family):
    Report().biased("series", family, moments(StochasticBackprop("series", 1), ENDING[family], Cubic()))


@pytest.mark.parametrize("form", [("jump", None), ("series", 1)])
@pytest.mark.parametrize("family", ENDING)
def test_costs_that_say_their_degree_end_it_by_themselves(family, form):
    """Both forms, whatever the order asked for: two derivatives at the sample, and nothing random beside it."""
    case = ENDING[family]
    cost = SquaredCost(0.49, event_dim=0)
    Report().unbiased("degree", family, moments(StochasticBackprop(*form), case, cost))
    gradients = []
    for estimator in (StochasticBackprop(*form), StochasticBackprop("series", 2)):
        torch.manual_seed(0)
        leaves = case.leaves(100)
        f = cost if estimator.order != 2 else CallableObjective(cost.value, 0)
        torch.autograd.backward(estimator(case.family(**leaves), f).sum())
        gradients.append([p.grad for p in leaves.values()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_sums_of_squares_are_squares():
    torch.manual_seed(0)
    rate = torch.full((3,), 2.0, dtype=F64, requires_grad=True)
    f = Sum([SquaredCost(0.49), SquaredCost(1.0)])
    StochasticBackprop()(Independent(Exponential(rate), 1), f).backward()
    torch.manual_seed(0)
    z = Exponential(rate).sample((1,))[0]
    torch.testing.assert_close(rate.grad, -(0.25 * (4 * z - 2.98) + 0.125 * 4))


@pytest.mark.parametrize("family", ENDING)
def test_exponential_costs_sum_the_series(family):
    """At the same sample the closed form is the series of many terms; and it is unbiased."""
    case = ENDING[family]
    cost = ExponentialCost(-0.49, event_dim=0)
    q = case.family(**case.leaves(20))
    z = q.sample()
    closed = exponential_rule(q, z, cost)
    for name, gradient in series_rule(q, z, cost, 60).items():
        torch.testing.assert_close(closed[name], gradient, rtol=1e-9, atol=1e-12)
    Report().unbiased("exponential", family, moments(StochasticBackprop(), case, cost))
    Report().unbiased("exponential", family, moments(StochasticBackprop("series", 1), case, cost))


def test_exponential_costs_of_several_latents():
    concentration, rate = number([1.7, 0.4]).requires_grad_(), number([0.9, 2.0]).requires_grad_()
    truth = torch.autograd.grad(((rate / (rate + number([0.49, 0.2]))) ** concentration).sum(), (concentration, rate))
    leaves = [p.detach().expand(SAMPLES, 2).clone().requires_grad_() for p in (concentration, rate)]
    cost = ExponentialCost(number([-0.49, -0.2]))
    torch.autograd.backward(StochasticBackprop()(Independent(Gamma(*leaves), 1), cost).sum())
    found = Moments({"concentration": truth[0], "rate": truth[1]})
    found.add({"concentration": leaves[0].grad, "rate": leaves[1].grad})
    Report().unbiased("exponential", "two gammas", found)


def test_beta_and_dirichlet_series_are_those_of_their_gammas():
    """Equations 20 and 21 at order 2, with the derivatives in the gammas by hand: f = z_0."""
    torch.manual_seed(0)
    alpha = number([[30.0, 20.0, 50.0]])
    z = Dirichlet(alpha).sample()
    torch.manual_seed(1)
    found = series_rule(Dirichlet(alpha), z, CallableObjective(lambda z: z[..., 0]), 2)["concentration"]
    torch.manual_seed(1)
    total = standard_gamma(alpha.sum(-1, keepdim=True))
    unit = number([1.0, 0.0, 0.0])
    first = (unit - z[..., :1]) / total
    second = -2 * (unit - z[..., :1]) / total**2
    torch.testing.assert_close(found, first + second / 2)

    a, b = number([30.0]), number([70.0])
    x = Beta(a, b).sample()
    torch.manual_seed(1)
    found = series_rule(Beta(a, b), x, CallableObjective(lambda z: z, event_dim=0), 2)
    torch.manual_seed(1)
    total = standard_gamma(a + b)
    torch.testing.assert_close(found["concentration1"], (1 - x) / total - (1 - x) / total**2)
    torch.testing.assert_close(found["concentration0"], -x / total + x / total**2)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_exponential_costs_keep_the_precision_of_z(dtype):
    z = torch.rand(5, dtype=dtype)
    for order in (1, 3):
        found = ExponentialCost(-0.49, event_dim=0).coordinate_derivative(z, order)
        assert found.dtype == dtype
        torch.testing.assert_close(
            found, (-0.49) ** order * torch.exp(-0.49 * z), rtol=1e-15 if dtype == F64 else 1e-6, atol=0
        )


@pytest.mark.parametrize("order", [1, 6])
def test_beta_series_converges_at_large_concentrations(order):
    case = Case(Beta, {"concentration1": 30.0, "concentration0": 20.0})
    found = moments(StochasticBackprop("series", order), case, lambda z: torch.sin(3 * z), samples=5_000)
    (Report().biased if order == 1 else Report().unbiased)("series", str(case), found)


@pytest.fixture(scope="module")
def documented():
    """What the documentation's block defines."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    torch.manual_seed(0)
    names = {}
    exec(compile(code, str(DOCUMENT), "exec"), names)
    return names


def test_the_documented_family_has_its_moments(documented):
    q = documented["InverseGaussian"](number(1.2), number(0.7))
    z = q.sample((SAMPLES,))
    for power, moment in ((1, 1.2), (2, 1.2**2 + 1.2**3 / 0.7)):
        se = (z**power).std() / SAMPLES**0.5
        assert abs((z**power).mean() - moment) < 5.5 * se


def test_the_documented_family_has_its_coefficients(documented):
    """K' is a series of binomials of 1/2: ∂_λ K = (1 - √(1 - x)) / μ - t μ / (λ √(1 - x)), x = 2μ²t/λ."""
    mu, lam = 1.2, 0.7
    found = series_coefficients(
        documented["inverse_gaussian"], {"loc": number(mu), "concentration": number(lam)}, ORDER
    )
    for n in range(1, ORDER + 1):
        x = (2 * mu**2 / lam) ** n
        root = (-1) ** n * generalised_binomial(0.5, n) * x  # of sqrt(1 - x)
        inverse = (-1) ** (n - 1) * generalised_binomial(-0.5, n - 1) * (2 * mu**2 / lam) ** (n - 1)
        torch.testing.assert_close(
            found["concentration"][n - 1], number(-root / mu - mu / lam * inverse), rtol=1e-8, atol=1e-10
        )


def generalised_binomial(a, n):
    return math.prod((a - i) / (i + 1) for i in range(n))


def test_the_documented_family_is_exact_where_the_series_ends(documented):
    mu, lam = number(1.2).requires_grad_(), number(2.7).requires_grad_()
    truth = torch.autograd.grad(mu**3 + 3 * mu**4 / lam + 3 * mu**5 / lam**2, (mu, lam))
    leaves = [p.detach().expand(SAMPLES).clone().requires_grad_() for p in (mu, lam)]
    estimator = StochasticBackprop("series", 3)
    torch.autograd.backward(estimator(documented["InverseGaussian"](*leaves), lambda z: z**3).sum())
    found = Moments({"loc": truth[0], "concentration": truth[1]})
    found.add({"loc": leaves[0].grad, "concentration": leaves[1].grad})
    Report().unbiased("series", "inverse Gaussian", found)
    # The doc's own call, at μ = 1, λ = 2: 3 μ² + 12 μ³/λ + 15 μ⁴/λ²; five times the .4 by which runs differ.
    assert documented["loc"].grad.item() == pytest.approx(12.75, abs=2.0)


def test_the_documented_family_trains(documented):
    """E[(z - 2)²] = (μ - 2)² + μ³/λ has its minimum where 2 (μ - 2) + 3 μ²/λ = 0."""
    lam, log_mu = 8.0, number([0.0, 0.5]).requires_grad_()
    optimizer = torch.optim.Adam([log_mu], lr=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    estimator = StochasticBackprop("series", 2, num_samples=100)
    for _ in range(300):
        optimizer.zero_grad()
        q = Independent(documented["InverseGaussian"](log_mu.exp(), number(lam)), 1)
        estimator(q, lambda z: (z - 2).square().sum(-1)).backward()
        optimizer.step()
        scheduler.step()
    best = lam / 3 * (math.sqrt(1 + 12 / lam) - 1)
    torch.testing.assert_close(log_mu.exp().detach(), number([best, best]), rtol=0.02, atol=0)
