"""An estimator in the cost of an estimator, and so on: with one sample each, however deep."""

import sys

import pytest
import torch
from torch.distributions import Bernoulli, Gamma, Independent, Normal, OneHotCategorical, Poisson

from lightning_estimators.estimators import REINFORCE, RELAX
from lightning_estimators.networks import Surrogate
from tests.estimators.cases import CASES

B, D, K = 4, 3, 2


def one_sample(estimator):
    return estimator.num_samples == 1


def distribution(estimator, lead):
    """The first of several that the estimator takes, of batch_shape lead + (B,)."""
    leaf = torch.randn(B, D, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    wide = leaf.expand(*lead, B, D, K)
    first, second = wide.unbind(-1)
    families = (
        Bernoulli(logits=first),
        OneHotCategorical(logits=wide),
        Normal(first, second.exp()),
        Gamma(first.exp(), second.exp()),
        Poisson(first.exp()),
    )
    for q in families:
        try:
            estimator.check(Independent(q, 1))
        except TypeError:
            continue
        return leaf, Independent(q, 1)
    raise AssertionError(f"no distribution for {type(estimator).__name__}")


@pytest.mark.parametrize("name", [name for name, make in CASES.items() if one_sample(make())])
def test_an_axis_of_one_sample_serves_twice(name):
    """The same estimate under the same noise as without the axis, of a cost that sees no more axes than that."""
    outcomes = []
    for lead in ((), (1,)):
        torch.manual_seed(0)
        estimator = CASES[name]().double()
        leaf, q = distribution(estimator, lead)
        context = torch.arange(2.0 * B, dtype=torch.float64).reshape(*lead, B, 2)
        estimator.prepare(q, context)
        estimator.double()
        seen, event = set(), len(q.event_shape)

        def f(z, seen=seen, event=event):
            seen.add(z.ndim - event)
            return (z - 0.3).square().flatten(z.ndim - event).sum(-1)

        estimator.allow_coupled_costs = True
        torch.manual_seed(1)
        value = estimator(q, f, context)
        assert value.shape == (*lead, B)
        value.sum().backward()
        own = [p.grad for p in estimator.parameters() if p.grad is not None]
        outcomes.append([value.detach().reshape(B), leaf.grad, *own, min(seen)])
    without, with_axis = outcomes
    assert with_axis.pop() == without.pop()  # how many axes the cost saw
    for a, b in zip(without, with_axis, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.fixture
def deep_recursion():
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(5000)  # about eleven frames for each level
    yield
    sys.setrecursionlimit(limit)


@pytest.mark.usefixtures("deep_recursion")
@pytest.mark.parametrize("make", [REINFORCE, lambda: RELAX(Surrogate([3], "tanh"))], ids=["REINFORCE", "RELAX"])
def test_nests_may_be_deeper_than_a_tensor_has_axes(make):
    """A walk of 100 steps, each an estimator in the cost of the one before: c_t + the rest of the walk."""
    steps, estimator = 100, make()
    logit = torch.zeros((), requires_grad=True)

    def rest(t, lead):
        q = Independent(Bernoulli(logits=logit.expand(*lead, 1)), 1)
        return estimator(q, lambda up: up.sum(-1) + (rest(t + 1, up.shape[:-1]) if t < steps else 0.0))

    torch.manual_seed(0)
    walks = 4000
    value = rest(1, (walks,))
    assert value.shape == (walks,)
    value.mean().backward()
    assert abs(value.mean() - steps / 2) < 5 * (steps / 4 / walks) ** 0.5
    # Each step adds p (1 - p) = 1/4 to the gradient. Without a baseline the score of a step multiplies the costs of
    # the r = 1, ..., 100 steps that remain, so that one walk has the variance sum (r^2 + r) / 16: five standard errors
    # are less than half of the 25 expected.
    variance = sum((r * r + r) / 16 for r in range(1, steps + 1))
    assert abs(logit.grad - steps / 4) < 5 * (variance / walks) ** 0.5
