"""The likelihood by products: the numbers of torch's own function, and more of them where it rounds."""

import pytest
import torch
from torch.nn import functional as F

from lightning_estimators.objectives import bernoulli_cost as module
from lightning_estimators.objectives.bernoulli_cost import bernoulli_cost


@pytest.fixture(autouse=True)
def _products_at_any_size(monkeypatch):
    monkeypatch.setattr(module, "_WORTHWHILE", 0)


def by_definition(logits, target):
    target = target.expand(logits.shape)
    return torch.where(target > 0, target * F.softplus(-logits), 0.0).sum(-1) + ((1 - target) * F.softplus(logits)).sum(
        -1
    )


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("outputs", [1, 7, 33, 130])
def test_single_precision_keeps_its_digits(scale, outputs):
    torch.manual_seed(0)
    logits, target = scale * torch.randn(5, outputs), (torch.rand(5, outputs) < 0.5).float()
    kept = logits.clone()
    cost = bernoulli_cost(logits, target)
    torch.testing.assert_close(cost.double(), by_definition(logits.double(), target.double()), rtol=2e-6, atol=0)
    assert torch.equal(logits, kept)


@pytest.mark.parametrize("size", [10.0, 40.0, 80.0])
def test_what_is_almost_certain_costs_almost_nothing_and_not_nothing(size):
    target = (torch.arange(100) % 2).float()
    logits = size * (2 * target - 1)
    exact = 100 * torch.log1p(torch.exp(torch.tensor(-size, dtype=torch.float64)))
    torch.testing.assert_close(bernoulli_cost(logits, target).double(), exact, rtol=1e-5, atol=0)


def test_extremes_are_those_of_the_definition():
    logits = torch.tensor([0.0, 1e30, -1e30, 1e30, -1e30, 200.0, -200.0])
    target = torch.tensor([0.3, 1.0, 0.0, 1.0, 0.0, 0.25, 0.75])
    expected = by_definition(logits.double(), target.double())
    torch.testing.assert_close(bernoulli_cost(logits, target).double(), expected, rtol=1e-6, atol=0)
    assert bernoulli_cost(torch.tensor([0.0, torch.nan]), torch.zeros(2)).isnan()
    assert bernoulli_cost(torch.zeros(3, 0), torch.zeros(3, 0)).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("lead", "of_target"), [((), ()), ((4,), ()), ((3, 4), (4,)), ((3, 4), (3, 1)), ((3, 1), (4,))], ids=str
)
def test_derivatives_of_two_orders(lead, of_target):
    torch.manual_seed(0)
    logits = (2 * torch.randn(*lead, 5, dtype=torch.float64)).requires_grad_()
    target = torch.rand(*of_target, 5, dtype=torch.float64).requires_grad_()
    torch.autograd.gradcheck(bernoulli_cost, (logits, target))
    torch.autograd.gradgradcheck(bernoulli_cost, (logits, target))


def test_no_graph_where_none_is_needed():
    logits = torch.randn(4, 5, requires_grad=True)
    with torch.no_grad():
        assert not bernoulli_cost(logits, torch.rand(5)).requires_grad
    assert not bernoulli_cost(logits.detach(), torch.rand(5)).requires_grad
    assert bernoulli_cost(logits, torch.rand(5)).requires_grad


def test_half_precision_is_summed_in_single():
    logits, target = torch.randn(4, 300).bfloat16(), (torch.rand(4, 300) < 0.5).bfloat16()
    cost = bernoulli_cost(logits, target)
    assert cost.dtype == torch.float32
    torch.testing.assert_close(cost, by_definition(logits.float(), target.float()))


def test_small_problems_take_the_same_values(monkeypatch):
    logits, target = torch.randn(4, 5, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    by_products = bernoulli_cost(logits, target)
    monkeypatch.setattr(module, "_WORTHWHILE", 2**13)
    torch.testing.assert_close(bernoulli_cost(logits, target), by_products)
