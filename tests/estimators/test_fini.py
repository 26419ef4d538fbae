"""Fini at every point of the support: what it is exact for, what it is not, and rates at the ends."""

import math

import pytest
import torch
from torch.distributions import Independent, NegativeBinomial, Poisson

from lightning_estimators.distributions import distribution_parameters
from lightning_estimators.estimators import Fini

F64 = torch.float64
FAMILIES = {
    "Poisson(.4)": (lambda rate: Poisson(rate), (0.4,)),
    "Poisson(2.3)": (lambda rate: Poisson(rate), (2.3,)),
    "NegativeBinomial(.7, -1)": (lambda r, logits: NegativeBinomial(r, logits=logits), (0.7, -1.0)),
    "NegativeBinomial(3, -.5)": (lambda r, logits: NegativeBinomial(r, logits=logits), (3.0, -0.5)),
}


def leaves(family):
    make, values = FAMILIES[family]
    return make, [torch.tensor(value, dtype=F64, requires_grad=True) for value in values]


def mean_and_exact(estimator, family, f, monkeypatch):
    """The mean of the estimate over the support, and the gradient, in every parameter."""
    z = torch.arange(150, dtype=F64)
    make, parameters = leaves(family)
    weights = make(*parameters).log_prob(z).exp()
    exact = torch.autograd.grad((weights * f(z)).sum(), parameters)
    monkeypatch.setattr("lightning_estimators.estimators.straight_through_estimator.sample", lambda _: z.unsqueeze(0))
    estimator.allow_coupled_costs = True
    at_points = [p.detach().expand(150).clone().requires_grad_() for p in parameters]
    found = torch.autograd.grad(estimator(make(*at_points), f).sum(), at_points)
    return torch.stack([(weights.detach() * g).sum() for g in found]), torch.stack(exact)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("order", [2, 3])
def test_is_exact_up_to_its_order_and_biased_beyond(order, family, monkeypatch):
    for degree in range(1, order + 2):
        found, exact = mean_and_exact(Fini(order), family, lambda z, d=degree: (z - 0.7).pow(d), monkeypatch)
        same = torch.isclose(found, exact, rtol=1e-9, atol=1e-9)
        assert same.all() if degree <= order else not same.any()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_have_the_least_mean_square(family, monkeypatch):
    """They are polynomials of degree N - 1, and so orthogonal to whatever adds nothing for costs of order N."""
    _, (first, *_) = leaves(family)
    z = torch.arange(150, dtype=F64)
    make, parameters = leaves(family)
    weights = make(*parameters).log_prob(z).exp().detach()
    powers = torch.stack([(z / z.max()).pow(k) for k in range(4)])
    nothing = torch.sin(z)  # less its part in polynomials of degree 2, in the mean square
    gram, moments = (powers[:3] * weights) @ powers[:3].T, (powers[:3] * weights) @ nothing
    nothing = nothing - torch.linalg.solve(gram, moments) @ powers[:3]
    slopes = {}

    def f(z):
        return 2 * z  # of slope 2, so that the gradient is twice the weight

    monkeypatch.setattr("lightning_estimators.estimators.straight_through_estimator.sample", lambda _: z.unsqueeze(0))
    for order in (2, 3):
        at_points = first.detach().expand(150).clone().requires_grad_()
        others = [p.detach().expand(150) for p in parameters[1:]]
        estimator = Fini(order)
        estimator.allow_coupled_costs = True
        (slopes[order],) = torch.autograd.grad(estimator(make(at_points, *others), f).sum(), at_points)
        assert abs(float((weights * slopes[order] * nothing).sum())) < 1e-9
    assert (slopes[2] - slopes[3]).abs().max() > 0.01


def test_order_2_is_the_trapezoidal_rule_and_may_have_the_wrong_sign(monkeypatch):
    def f(z):
        return torch.sin(4 * z)

    found, exact = mean_and_exact(Fini(2), "Poisson(2.3)", f, monkeypatch)
    assert torch.allclose(found, exact * 2 / math.tan(2))  # that of a sine, in closed form
    assert found * exact < 0


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("order", [2, 3])
def test_rates_at_the_ends(order, dtype):
    torch.manual_seed(0)
    rate = torch.tensor([0.0, 1e-30, 1e-6, 1.0, 1e6], dtype=dtype).repeat(200, 1).requires_grad_()
    q = Independent(Poisson(rate), 1)
    Fini(order)(q, lambda z: z.sum(-1)).sum().backward()
    assert rate.grad.isfinite().all()
    assert torch.allclose(rate.grad[:, :2], torch.tensor(0.5 if order == 2 else 5 / 12, dtype=dtype))
    assert (rate.grad[:, 4] - 1).abs().max() < 0.01
    logits = torch.tensor([-60.0, -20.0, 0.0, 8.0], dtype=dtype).repeat(200, 1).requires_grad_()
    total = torch.full_like(logits, 1e-3).requires_grad_()
    Fini(order)(Independent(NegativeBinomial(total, logits=logits), 1), lambda z: z.sum(-1)).sum().backward()
    assert logits.grad.isfinite().all()
    assert total.grad.isfinite().all()


def test_parameters_that_are_not_learned_get_no_gradient():
    logits = torch.zeros(2, 3, requires_grad=True)
    q = Independent(NegativeBinomial(torch.tensor(4.0), logits=logits), 1)
    Fini()(q, lambda z: z.square().sum(-1)).sum().backward()
    assert (logits.grad != 0).any()
    assert not distribution_parameters(q)["total_count"].requires_grad


def test_other_orders_are_refused():
    with pytest.raises(ValueError, match="order 2 and 3, got order=4"):
        Fini(4)
