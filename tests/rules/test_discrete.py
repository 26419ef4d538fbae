"""The exact rules of the discrete families, and the registry."""

import pytest
import torch
from torch.distributions import (
    Bernoulli,
    Independent,
    Multinomial,
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
    VonMises,
)

from lightning_estimators.distributions import sample
from lightning_estimators.estimators import StochasticBackprop
from lightning_estimators.objectives import as_objective
from lightning_estimators.rules import base as registry
from lightning_estimators.rules import register_rule, rule_for
from lightning_estimators.rules.bernoulli import bernoulli_rule
from lightning_estimators.rules.categorical import categorical_rule


def separable(weights):
    """A sum over coordinates: then the rule is exact at every sample."""
    return lambda z: (weights * z).flatten(-weights.ndim).sum(-1)


def test_bernoulli_rule_is_exact_for_separable_costs():
    logits, weights = torch.randn(5, 3).double(), torch.randn(3).double()
    q = Independent(Bernoulli(logits=logits), 1)
    gradient = bernoulli_rule(q, sample(q), as_objective(separable(weights), 1))["logits"]
    p = torch.sigmoid(logits)
    assert torch.allclose(gradient, p * (1 - p) * weights)


def test_categorical_rule_is_exact_for_separable_costs():
    logits, weights = torch.randn(5, 2, 4).double().requires_grad_(), torch.randn(2, 4).double()
    q = Independent(OneHotCategorical(logits=logits), 1)
    gradient = categorical_rule(q, sample(q), as_objective(separable(weights), 2))["logits"]
    expected = torch.autograd.grad((torch.softmax(logits, -1) * weights).sum(), logits)[0]
    assert torch.allclose(gradient, expected)


@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical])
def test_rules_do_not_depend_on_the_coordinate_they_integrate_out(family):
    """The gradient in one variable is the same whatever value that variable was sampled at."""
    logits = torch.randn(2, 3).double() if family is Bernoulli else torch.randn(2, 2, 3).double()
    q = Independent(family(logits=logits), 1)
    weights = torch.randn(logits[0].numel()).double()
    f = as_objective(lambda z: torch.sin((z.flatten(-len(q.event_shape)) * weights).sum(-1)), len(q.event_shape))
    rule = rule_for(q, f_gradient=False)
    z = sample(q)
    changed = z.clone()
    changed[:, 0] = 1 - z[:, 0] if family is Bernoulli else z[:, 0].roll(1, -1)
    before, after = rule(q, z, f)["logits"], rule(q, changed, f)["logits"]
    assert torch.allclose(before[:, 0], after[:, 0])
    assert not torch.allclose(before[:, 1], after[:, 1])


def test_one_category_has_no_gradient():
    logits = torch.zeros(3, 2, 1, requires_grad=True)
    q = Independent(OneHotCategorical(logits=logits), 1)
    StochasticBackprop()(q, lambda z: z.sum((-1, -2))).sum().backward()
    assert torch.equal(logits.grad, torch.zeros(3, 2, 1))


def test_subclasses_inherit_the_rule():
    q = Independent(OneHotCategoricalStraightThrough(logits=torch.zeros(2, 3)), 1)
    assert rule_for(q, f_gradient=False) is categorical_rule


def test_families_without_a_rule_are_refused_by_name():
    for q in (VonMises(torch.zeros(2), torch.ones(2)), Multinomial(3, logits=torch.zeros(2, 3))):
        with pytest.raises(TypeError, match=rf"no rule for {type(q).__name__}.*Bernoulli.*register_rule"):
            StochasticBackprop(f_gradient=False).check(q)


def test_a_rule_of_ones_own(monkeypatch):
    monkeypatch.setattr(registry, "_rules", dict(registry._rules))

    class Coin(Bernoulli):
        pass

    @register_rule(Coin, f_gradient=False)
    def coin_rule(q, z, f):
        return {"logits": torch.full_like(z, 7.0)}

    logits = torch.zeros(2, 3, requires_grad=True)
    StochasticBackprop()(Independent(Coin(logits=logits), 1), lambda z: z.sum(-1)).sum().backward()
    assert (logits.grad == 7).all()
