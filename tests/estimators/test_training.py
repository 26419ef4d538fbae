"""Training own parameters lowers the variance, by a margin, from where it is known to be high."""

import pytest
import torch
from torch.distributions import Bernoulli, OneHotCategorical

from lightning_estimators.baselines import MovingAverage, NoBaseline
from lightning_estimators.estimators import REBAR, REINFORCE, RELAX, RelaxedREBAR
from lightning_estimators.testing import ExactExpectation, total_variance
from lightning_estimators.testing.under_test import build

from .cases import small_baseline, small_surrogate

STEPS = 300


def start(factory, family):
    problem = ExactExpectation(family)
    return problem, build(factory, problem.distribution(problem.parameters()["logits"].unsqueeze(0)))


def variance(factory, family):
    problem, subject = start(factory, family)
    return total_variance(subject, problem, 20_000)


def trained(factory, family):
    """Variance of the gradient before and after training, and the estimator."""
    problem, subject = start(factory, family)
    parameters = problem.parameters()
    before = total_variance(subject, problem, 20_000)
    optimizer = torch.optim.Adam(subject.own().values(), lr=0.03)
    logits = parameters["logits"].expand(100, *problem.event_shape)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = subject(problem.distribution(logits), lambda b: problem.cost(parameters, b))
        loss.mean().backward()
        optimizer.step()
    after = total_variance(subject, problem, 20_000)
    return before, after, subject.estimator


EACH_DISCRETE_FAMILY = pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical])


@EACH_DISCRETE_FAMILY
def test_rebar_recovers_from_a_bad_scale_and_temperature(family):
    before, after, rebar = trained(lambda: REBAR(temperature=5.0, eta=-1.0), family)
    assert after < 0.7 * before
    assert after < 0.8 * variance(lambda: REINFORCE(NoBaseline()), family)
    assert rebar.eta > 0


@EACH_DISCRETE_FAMILY
def test_relax_learns_a_control_variate(family):
    _, after, _ = trained(lambda: RELAX(small_surrogate()), family)
    assert after < 0.5 * variance(lambda: REINFORCE(NoBaseline()), family)


@EACH_DISCRETE_FAMILY
def test_relaxed_rebar_improves_on_untrained_rebar(family):
    _, after, _ = trained(lambda: RelaxedREBAR(small_surrogate(), temperature=3.0), family)
    assert after < 0.7 * variance(lambda: REBAR(temperature=3.0), family)


def test_a_learned_baseline_takes_out_what_the_context_explains():
    """The cost has an offset of 10 times the context; an average over the batch cannot know it."""
    torch.manual_seed(0)
    context = torch.randn(500, 1)
    logits = torch.zeros(500, 2, requires_grad=True)

    def second_moment(estimator, steps):
        optimizer = torch.optim.Adam([p for p in estimator.parameters() if p.requires_grad] or [logits], lr=0.05)
        for _ in range(steps + 1):
            optimizer.zero_grad()
            logits.grad = None
            q = torch.distributions.Independent(Bernoulli(logits=logits), 1)
            estimator(q, lambda b: b.sum(-1) + 10 * context.squeeze(-1), context).sum().backward()
            if steps:
                optimizer.step()
        return logits.grad.square().mean().item()

    learned = REINFORCE(small_baseline())
    second_moment(learned, 0)  # sizes the network
    moving = REINFORCE(MovingAverage())
    assert second_moment(learned, 500) < 0.1 * second_moment(moving, 0)
