"""Samples without replacement: exactly unbiased over all sets, exact where all points are drawn, and robust."""

import math
from itertools import combinations, permutations, product

import pytest
import torch
from torch.distributions import Bernoulli, Independent, OneHotCategorical
from torch.nn.functional import one_hot

from lightning_estimators.baselines import LeaveOneOut
from lightning_estimators.estimators import Enumeration, UnorderedSet
from lightning_estimators.estimators.unordered_set import _draw_set, set_weights
from lightning_estimators.testing import BOUND

F64 = torch.float64
LOGITS = torch.tensor([[0.3, -0.8, 0.5], [1.5, 0.0, -1.0]], dtype=F64)
CLOSE = {"rtol": 1e-9, "atol": 1e-12}
POINTS = torch.tensor(list(product(range(3), repeat=2)))
"""All values of two variables of three classes."""


def f(z):
    """A cost that couples all coordinates."""
    z = z.flatten(-2).to(F64)
    weights = torch.linspace(-1, 2, z.shape[-1], dtype=F64)
    return torch.sin((z * weights).sum(-1)) + 0.7 * (z * weights.flip(-1)).sum(-1).square() + 0.3


def gradient(estimator, logits, family=OneHotCategorical, cost=f):
    leaf = logits.clone().requires_grad_()
    estimator.allow_coupled_costs = True  # looking for them draws noise
    value = estimator(Independent(family(logits=leaf), 1), cost)
    (grad,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), grad


def log_probabilities():
    log_p = LOGITS.log_softmax(-1)
    return log_p[0, POINTS[:, 0]] + log_p[1, POINTS[:, 1]]


def probability_of_set(p):
    """The sum over all orders in which the points may be drawn, one after the other, from what is left."""
    total = 0.0
    for order in permutations(p):
        left, probability = 1.0, 1.0
        for one in order:
            probability *= one / left
            left -= one
        total += probability
    return total


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_is_exactly_unbiased(samples, monkeypatch):
    log_p = log_probabilities()
    sets = torch.tensor(list(combinations(range(len(POINTS)), samples)))
    weights = torch.tensor([probability_of_set(log_p[s].exp().tolist()) for s in sets], dtype=F64)
    monkeypatch.setattr(
        "lightning_estimators.estimators.unordered_set._draw_set",
        lambda *_: (POINTS[sets.T], log_p[sets.T]),
    )
    value, grad = gradient(UnorderedSet(samples), LOGITS.expand(len(sets), -1, -1))
    exact_value, exact = gradient(Enumeration(), LOGITS)
    assert torch.allclose(weights.sum(), torch.ones((), dtype=F64), **CLOSE)
    assert torch.allclose(weights @ value, exact_value, **CLOSE)
    assert torch.allclose(torch.einsum("n,nvc->vc", weights, grad), exact, **CLOSE)


@pytest.mark.parametrize("samples", [2, 3])
def test_sets_are_drawn_as_often_as_their_probabilities_say(samples):
    torch.manual_seed(0)
    n, log_p = 50_000, log_probabilities()
    categories, found_log_p = _draw_set(LOGITS.log_softmax(-1).expand(n, -1, -1), samples)
    index = 3 * categories[..., 0] + categories[..., 1]
    assert torch.allclose(found_log_p, log_p[index], **CLOSE)
    index = index.sort(0).values
    for members in combinations(range(len(POINTS)), samples):
        expected = probability_of_set(log_p[list(members)].exp().tolist())
        found = (index == torch.tensor(members).unsqueeze(-1)).all(0).to(F64).mean()
        assert abs(found - expected) < BOUND * math.sqrt(expected * (1 - expected) / n), members


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("samples", [3, 4, 8])
def test_is_exact_where_every_possible_point_is_drawn(samples, dtype):
    """Also where there are fewer points than samples: one of the others then stands in, and weighs nothing."""
    logits = torch.tensor([[0.3, -math.inf, 1.0], [-math.inf, 0.0, -math.inf]], dtype=dtype)
    if samples > 3:
        logits = torch.tensor([[0.3, -math.inf, 1.0], [-math.inf, 0.0, 9.0]], dtype=dtype)
    seen = []

    def cost(z):
        seen.append(z)
        return f(z).to(dtype)

    value, grad = gradient(UnorderedSet(samples), logits, cost=cost)
    assert all((z[..., logits.isinf()] == 0).all() for z in seen)  # what is impossible is not evaluated
    exact_value, exact = gradient(Enumeration(), logits, cost=lambda z: f(z).to(dtype))
    assert torch.allclose(value, exact_value, atol=1e-5)
    assert torch.allclose(grad, exact, atol=1e-5)


@pytest.mark.parametrize("samples", [2, 5])
def test_is_leave_one_out_where_every_point_is_improbable(samples):
    torch.manual_seed(0)
    logits = 0.1 * torch.randn(4, 300, dtype=F64)
    seen = []

    def cost(z):
        seen.append(z)
        return (z.sum(-1) / 10).sin()

    value, grad = gradient(UnorderedSet(samples), logits, Bernoulli, cost)
    (z,) = seen
    signal, _ = LeaveOneOut()(cost(z), None)
    assert torch.allclose(value, cost(z).mean(0), **CLOSE)
    assert torch.allclose(grad, (signal.unsqueeze(-1) * (z - logits.sigmoid())).mean(0), **CLOSE)


def test_weights_of_a_set_add_up_to_1_however_certain_one_point_is():
    for first in (-1e-3, -1e-9, -1e-20, 0.0):
        log_p = torch.tensor([first, -25.0, -60.0, -900.0], dtype=F64)
        weights, others = set_weights(log_p)
        assert torch.allclose(weights.sum(), torch.ones((), dtype=F64), **CLOSE)
        assert torch.allclose(others.sum(1), torch.ones(4, dtype=F64), rtol=1e-6)
        assert (weights >= 0).all()


@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical])
def test_stays_finite_where_probabilities_round_to_0_or_1(family):
    torch.manual_seed(0)
    event_dim = 1 if family is Bernoulli else 2
    for scale in (10.0, 40.0, 90.0):
        logits = scale * torch.randn(500, 3, 3).sign()
        logits = logits[..., 0] if family is Bernoulli else logits
        value, grad = gradient(UnorderedSet(), logits, family, lambda z: z.flatten(-event_dim).sum(-1))
        assert value.isfinite().all()
        assert grad.isfinite().all()


def test_varies_less_than_leave_one_out_where_few_points_have_most_of_the_probability():
    torch.manual_seed(0)
    logits = torch.tensor([[2.0, 0.0, -1.0, -2.0]], dtype=F64).expand(20_000, 1, -1)
    weight = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=F64)
    _, grad = gradient(UnorderedSet(3), logits, cost=lambda z: (z * weight).sum((-1, -2)))
    z = one_hot(OneHotCategorical(logits=logits).sample((3,)).argmax(-1), 4)
    signal, _ = LeaveOneOut()((z * weight).sum((-1, -2)), None)
    independent = (signal[..., None, None] * (z - logits.softmax(-1))).mean(0)
    assert grad.var(0).sum() < 0.3 * independent.var(0).sum()


@pytest.mark.parametrize("samples", [1, 9])
def test_refuses_sets_of_one_and_sets_with_too_many_subsets(samples):
    with pytest.raises(ValueError, match=r"at least 2, got 1|at most 8, got 9"):
        UnorderedSet(samples)
