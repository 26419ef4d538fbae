"""The product with W is computed once a call, and never taken from another one."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Bernoulli, Independent

from lightning_estimators.estimators import StochasticBackprop
from lightning_estimators.noise import replay_scope
from lightning_estimators.objectives import BernoulliLinear, FirstLayerLinear, GaussianLinear


def cost(rows):
    return rows.square().sum(-1)


KINDS = {
    "bernoulli": lambda w: BernoulliLinear(w, torch.ones(4), torch.ones(4)),
    "gaussian": lambda w: GaussianLinear(w, torch.ones(4), torch.ones(4)),
    "first layer": lambda w: FirstLayerLinear(w, torch.ones(4), cost),
}


@pytest.fixture(params=KINDS)
def f(request):
    return KINDS[request.param](torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def products(monkeypatch):
    made, original = [], F.linear

    def counted(*args):
        made.append(1)
        return original(*args)

    monkeypatch.setattr("lightning_estimators.objectives.linear.F.linear", counted)
    return made


def test_an_estimator_multiplies_once(f, products):
    q = Independent(Bernoulli(logits=torch.zeros(2, 3, requires_grad=True)), 1)
    StochasticBackprop()(q, f).sum().backward()
    assert len(products) == 1


@pytest.mark.parametrize("how", ["weight", "point", "scope"])
def test_nothing_is_taken_from_elsewhere(f, how, products):
    z = torch.tensor([[1.0, 0.0, 1.0]])
    with replay_scope():
        f(z)
        if how == "point":
            z = 1 - z
            found = f.coordinate_change(z, 1 - z)
    if how == "weight":
        f.weight.mul_(2)
    if how != "point":
        found = f.coordinate_change(z, 1 - z)
    assert len(products) == 2
    expected = torch.stack([f(torch.where(torch.eye(3)[j] > 0, 1 - z, z)) - f(z) for j in range(3)], -1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_objectives_can_be_copied_after_a_call(f):
    z = torch.ones(2, 3)
    value = f(z)
    for again in (copy.deepcopy(f), pickle.loads(pickle.dumps(f))):
        assert torch.equal(again(z), value)
