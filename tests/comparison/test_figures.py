"""Every figure against its exact value. Seeds are fixed; a bound of 5 errors fails once in two million by chance."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Gamma, Independent, Normal

from lightning_estimators import compare
from lightning_estimators.baselines import NoBaseline
from lightning_estimators.comparison import ALARM
from lightning_estimators.estimators import REINFORCE, Concrete, Pathwise, StochasticBackprop
from lightning_estimators.objectives import SquaredCost
from tests.comparison.misbehaving import Planted

ERRORS = 5


def check(row, variance, squared_bias=0.0):
    assert abs(row.variance - variance) <= ERRORS * row.variance_error + 1e-9
    assert row.variance_error < 0.5 * variance + 1e-9
    assert abs(row.squared_bias - squared_bias) <= ERRORS * row.squared_bias_error + 1e-9
    assert (row.bias_z > ALARM) == (squared_bias > 0)
    assert row.mean_squared_error == pytest.approx(max(0.0, row.variance + row.squared_bias))


def bits(seed=0):
    """Three Bernoulli variables, all their values with their probabilities, and a cost."""
    generator = torch.Generator().manual_seed(seed)
    logits, weight = torch.randn(3, generator=generator), torch.randn(3, 3, generator=generator)
    points = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    q = Independent(Bernoulli(logits=logits), 1)
    return q, (lambda b: (b @ weight * b).sum(-1) + b.sum(-1).sin()), points, q.log_prob(points).exp()


def test_enumerable():
    q, f, points, p = bits()
    slope = q.base_dist.probs * (1 - q.base_dist.probs)
    score = f(points)[:, None] * (points - q.base_dist.probs)
    exact = p @ score

    def changed(j, value):
        moved = points.clone()
        moved[:, j] = value
        return f(moved)

    rule = torch.stack([slope[j] * (changed(j, 1.0) - changed(j, 0.0)) for j in range(3)], -1)
    variance_of_score, variance_of_rule = (float(p @ (g - exact).square().sum(-1)) for g in (score, rule))
    shift = 0.5 * math.sqrt(variance_of_rule / 3)
    candidates = [REINFORCE(NoBaseline()), StochasticBackprop(), Planted(shift)]
    result = compare((q, f), estimators=candidates, draws=400, budget=100.0)
    assert result.reference.kind == "exact"
    assert result.reference.norm == pytest.approx(float(exact.norm()), rel=1e-4)
    assert [row.draws for row in result.rows] == [400] * 3
    check(result.rows[0], variance_of_score)
    check(result.rows[1], variance_of_rule)
    check(result.rows[2], variance_of_rule, 3 * shift**2)
    row = result.rows[1]
    assert row.signal_to_noise == pytest.approx(float(exact.norm()) / math.sqrt(variance_of_rule), rel=0.15)
    assert row.cosine == pytest.approx(1.0, abs=0.01)
    off = exact + shift
    cosine = float(off @ exact / off.norm() / exact.norm())
    assert result.rows[2].cosine == pytest.approx(cosine, abs=0.06)
    assert result.rows[2].is_biased
    assert "take it for biased" in result.recommendation
    assert row.work_variance == row.variance * row.step_seconds


def test_linear_gaussian():
    # f is the squared distance from 0: in the location the gradient is 2z, in the scale 2z times the noise.
    loc, scale = torch.tensor([1.0, -0.5]), torch.tensor([0.7, 1.2])
    q = Independent(Normal(loc, scale), 1)
    in_loc, in_scale = float(4 * scale.square().sum()), float((4 * loc.square() + 8 * scale.square()).sum())
    result = compare((q, SquaredCost(torch.zeros(2))), estimators=[Pathwise(), Planted(0.6)], draws=400, budget=100.0)
    assert result.reference.kind == "exact"
    assert "ClosedForm" in str(result.reference)
    check(result.rows[0], in_loc + in_scale)
    exact = torch.cat([2 * loc, 2 * scale]).norm()
    assert result.reference.norm == pytest.approx(float(exact), rel=1e-4)
    assert result.rows[1].bias_z > ALARM


def test_batch_of_one_of_the_toy():
    # Tucker et al.: E[(b - t)^2]; the mean over a batch of one is the one.
    q = Independent(Bernoulli(logits=torch.zeros(1, 1)), 1)
    target = 0.45
    score = [(0.0 - target) ** 2 * -0.5, (1.0 - target) ** 2 * 0.5]
    variance = (score[0] - score[1]) ** 2 / 4
    result = compare((q, lambda b: (b - target).square().sum(-1)), estimators=[REINFORCE(NoBaseline())], draws=300)
    check(result.rows[0], variance)


def test_pooled_reference_flags_what_is_biased_and_nothing_else():
    q = Independent(Gamma(torch.tensor([[1.5, 0.7]]), torch.tensor([[1.0, 2.0]])), 1)
    candidates = [Pathwise(), StochasticBackprop(), REINFORCE(), Planted(0.5)]
    result = compare((q, lambda z: (1.3 * z).sin().sum(-1)), estimators=candidates, draws=100, learning_steps=20)
    assert result.reference.kind == "pooled"
    assert result.reference.error > 0
    assert [row.bias_z > ALARM for row in result.rows] == [False, False, False, True]
    assert all(abs(row.squared_bias) <= ERRORS * row.squared_bias_error for row in result.rows[:3])
    assert result.rows[3].squared_bias == pytest.approx(1.0, rel=0.3)  # four entries of .5


def test_groups_of_a_pair():
    weight = torch.ones(3, requires_grad=True)
    q = Independent(Bernoulli(logits=torch.zeros(3, requires_grad=True)), 1)
    result = compare((q, lambda b: (b @ weight).square()), estimators=[StochasticBackprop(), Concrete()], draws=50)
    row = result.rows[0]
    assert set(row.groups) == {"logits/q", "f"}
    assert row.variance == pytest.approx(sum(group.variance for group in row.groups.values()))
    assert row.squared_bias == pytest.approx(sum(group.squared_bias for group in row.groups.values()), abs=1e-5)
    assert weight.grad is None


def test_exact_candidates_have_no_variance_and_no_bias():
    # Linear in every coordinate: the rule is exact at every sample.
    q = Independent(Bernoulli(logits=torch.zeros(20)), 1)
    result = compare((q, lambda b: b.sum(-1)), estimators=[StochasticBackprop(), REINFORCE()], draws=50)
    assert result.reference.kind == "exact"
    row = result.rows[0]
    assert (row.variance, row.work_variance, row.signal_to_noise) == (pytest.approx(0, abs=1e-9), 0.0, math.inf)
    assert abs(row.bias_z) < ALARM
    assert "exact" in result.recommendation


def test_a_seed_decides():
    q, f, *_ = bits()
    first, second, third = (
        compare((q, f), estimators=[REINFORCE()], draws=20, learning_steps=5, seed=seed).rows[0] for seed in (1, 1, 2)
    )
    assert first.variance == second.variance != third.variance
