"""Hard concrete gates: their law, their gradient, how many are open, and gates that are decided."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal

from lightning_estimators.estimators import HardConcrete
from lightning_estimators.schedules import ExponentialSchedule
from lightning_estimators.testing import BOUND

F64 = torch.float64
LOGITS = torch.tensor([-2.0, -0.3, 0.0, 1.5], dtype=F64)
SETTINGS = {"default": {}, "wide": {"temperature": 0.4, "low": -0.3, "high": 1.2}}


def gates_of(estimator, logits, n=1):
    """Gates as f sees them."""
    seen = []

    def f(z):
        seen.append(z)
        return z.sum(-1)

    estimator.allow_coupled_costs = True
    estimator(Independent(Bernoulli(logits=logits.expand(n, -1)), 1), f)
    return seen[0][0]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_gates_are_closed_and_open_as_often_as_their_distribution_function_says(settings):
    torch.manual_seed(0)
    estimator, n = HardConcrete(**settings), 100_000
    temperature, low, high = estimator.temperature.to(F64), estimator.low, estimator.high
    gates = gates_of(estimator, LOGITS.clone().requires_grad_(), n).detach()
    for end, level in ((0.0, -low / (high - low)), (1.0, (1 - low) / (high - low))):
        # P(s < level) of the concrete variable s = σ((l + logit u) / λ)
        below = torch.sigmoid(temperature * math.log(level / (1 - level)) - LOGITS)
        expected = below if end == 0 else 1 - below
        found = (gates == end).double().mean(0)
        assert ((found - expected).abs() < BOUND * (expected * (1 - expected) / n).sqrt()).all()
    open_ = estimator.expected_l0(Independent(Bernoulli(logits=LOGITS), 1))
    found = (gates > 0).double().sum(-1)
    assert (open_ - found.mean()).abs() < BOUND * found.std() / n**0.5


def test_expected_l0_and_its_gradient():
    """Equation 12 of Louizos et al. (2018)."""
    estimator, logits = HardConcrete(0.5, low=-0.2, high=1.4), LOGITS.repeat(3, 1).requires_grad_()
    found = estimator.expected_l0(Independent(Bernoulli(logits=logits), 1))
    open_ = torch.sigmoid(LOGITS - 0.5 * math.log(0.2 / 1.4))
    assert found.shape == (3,)
    assert torch.allclose(found, open_.sum().expand(3), atol=1e-7)
    found.sum().backward()
    assert torch.allclose(logits.grad, (open_ * (1 - open_)).expand(3, -1), atol=1e-7)
    scalar = estimator.expected_l0(Bernoulli(logits=LOGITS))
    assert torch.allclose(scalar, open_, atol=1e-7)
    with pytest.raises(TypeError, match="HardConcrete"):
        estimator.expected_l0(Normal(torch.zeros(2), 1.0))


def test_gradient_is_that_of_the_expectation_over_hard_concrete_gates():
    """Against differences of an integral over the noise; that over Bernoulli gates is another."""
    torch.manual_seed(0)
    estimator, n, step = HardConcrete(), 100_000, 1e-3

    def f(z):
        return torch.sin(4 * z).sum(-1)

    logits = LOGITS.expand(n, -1).clone().requires_grad_()
    (g,) = torch.autograd.grad(estimator(Independent(Bernoulli(logits=logits), 1), f).sum(), logits)
    u = (torch.arange(400_000, dtype=F64).unsqueeze(-1) + 0.5) / 400_000

    def integral(at):
        return torch.sin(4 * (1.2 * torch.sigmoid((at + torch.logit(u)) / (2 / 3)) - 0.1).clamp(0, 1)).mean(0)

    exact = (integral(LOGITS + step) - integral(LOGITS - step)) / (2 * step)
    assert ((g.mean(0) - exact).abs() < BOUND * g.std(0) / n**0.5 + 1e-4).all()
    p = LOGITS.sigmoid()
    of_bits = p * (1 - p) * math.sin(4)
    assert ((of_bits - exact).abs() > 0.05).any()


def test_deterministic_gates():
    """Equation 13 of Louizos et al. (2018)."""
    estimator = HardConcrete()
    q = Independent(Bernoulli(logits=torch.tensor([-math.inf, -3.0, 0.0, 3.0, math.inf], dtype=F64)), 1)
    middle = torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0], dtype=F64)
    assert torch.allclose(estimator.deterministic_gates(q), middle)


@pytest.mark.parametrize("limit", [40.0, 1e9, math.inf])
def test_decided_gates_have_no_gradient_and_others_theirs(limit):
    torch.manual_seed(0)
    logits = torch.tensor([[0.3, limit, -limit]]).repeat(200, 1).requires_grad_()
    estimator = HardConcrete()
    q = Independent(Bernoulli(logits=logits), 1)
    loss = estimator(q, lambda z: z.sum(-1).square()) + estimator.expected_l0(q)
    loss.sum().backward()
    assert logits.grad[:, 1:].abs().max() < 1e-12
    assert (logits.grad[:, 0] > 0).all()
    gates = gates_of(estimator, logits[:1])
    assert gates[:, 1:].tolist() == [[1.0, 0.0]]


def test_temperature_follows_a_schedule():
    estimator = HardConcrete(ExponentialSchedule(1.0, 0.1, steps=2))
    estimator.set_step(1)
    q = Independent(Bernoulli(logits=LOGITS), 1)
    expected = torch.sigmoid(LOGITS - 0.1**0.5 * math.log(0.1 / 1.1)).sum()
    assert torch.allclose(estimator.expected_l0(q), expected, atol=1e-6)


def test_validation_is_at_hard_gates():
    estimator = HardConcrete().eval()
    with torch.no_grad():
        gates = gates_of(estimator, LOGITS, 100)
    assert set(gates.unique().tolist()) == {0.0, 1.0}
    p = LOGITS.sigmoid()
    assert ((gates.mean(0) - p).abs() < BOUND * (p * (1 - p) / 100).sqrt()).all()


@pytest.mark.parametrize("ends", [{"low": 0.0}, {"high": 1.0}, {"low": -math.inf}, {"high": math.nan}])
def test_ends_inside_of_the_unit_interval_are_refused(ends):
    with pytest.raises(ValueError, match="beyond 0 and 1"):
        HardConcrete(**ends)
