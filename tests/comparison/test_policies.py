"""Comparisons on policies: every draw is another rollout, since acting is where the variance comes from."""

import copy

import pytest
import torch
from modules.acting_env import Acting, Signals

from lightning_estimators import compare
from lightning_estimators.baselines import NoBaseline
from lightning_estimators.comparison.rollouts import ON_ROLLOUTS
from lightning_estimators.estimators import REBAR, REINFORCE, RELAX, StochasticBackprop
from lightning_estimators.modules import PolicyGradient
from lightning_estimators.networks import Surrogate


@pytest.fixture
def model():
    torch.manual_seed(0)
    return PolicyGradient(REINFORCE(NoBaseline()), 3, "discrete", [3], hidden=[8], critic_hidden=[8])


def rollouts(model, count):
    return list(Acting(model, Signals(4), batches=count))


def compared(model, source, estimators, **options):
    return compare(model, source, estimators, budget=30.0, learning_steps=3, progress=False, **options)


def test_the_variance_is_that_over_rollouts(model):
    acted = rollouts(model, 16)
    before = copy.deepcopy(model.state_dict())
    result = compared(model, acted, [RELAX(Surrogate([4], "tanh"))])
    own, relax = result.rows
    policy = [p for name, p in model.named_parameters() if not name.startswith("critic")]
    gradients = torch.stack(
        [torch.cat([g.flatten() for g in torch.autograd.grad(model.loss(r).mean(), policy)]) for r in acted[:12]]
    )
    # The estimator has no noise of its own, so the variance is known to rounding: on a single rollout it would be 0.
    assert own.variance == pytest.approx(gradients.var(0).sum().item(), rel=1e-4)
    assert own.draws == relax.draws == 12
    assert relax.learning_steps == 3
    assert relax.refused is None
    assert "critic" in own.groups
    assert ON_ROLLOUTS in result.notes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_needs_the_cost_elsewhere_is_refused_in_a_line_of_its_own(model):
    result = compared(model, rollouts(model, 8), [REBAR(), StochasticBackprop(), REINFORCE()])
    refused = {row.name.partition("(")[0]: row.refused for row in result.rows}
    for name in ("REBAR", "StochasticBackprop"):
        assert name in refused[name]
        assert "Use REINFORCE, RELAX" in refused[name]
    assert refused["REINFORCE"] is None


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (lambda model: rollouts(model, 1)[0], ValueError, "cannot be compared on one rollout"),
        (lambda model: rollouts(model, 3), ValueError, "at least 8 rollouts of a policy, got 3"),
        (lambda model: [torch.zeros(2, 3)] * 9, TypeError, "compared on rollouts, got Tensor"),
        (lambda model: 7, TypeError, "compared on rollouts, got int"),
    ],
)
def test_what_is_no_source_of_rollouts_is_refused(model, source, error, message):
    with pytest.raises(error, match=message):
        compared(model, source(model), [REINFORCE()])
