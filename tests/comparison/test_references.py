"""What means are compared with, where one of those that are pooled is wrong, and where there is another objective."""

import pytest
import torch
from torch.distributions import Bernoulli, Independent

from lightning_estimators import compare
from lightning_estimators.baselines import Baseline, LeaveOneOut, NoBaseline
from lightning_estimators.comparison.combined_score import CombinedScore
from lightning_estimators.estimators import REINFORCE, VIMCO, DisARM, MuProp, StochasticBackprop
from lightning_estimators.modules import DiscreteLatentModel
from lightning_estimators.testing.problems import expectation
from tests.comparison.misbehaving import Planted

MANY = Independent(Bernoulli(logits=torch.zeros(4, 20)), 1)  # too many values to sum over


def cost(b):
    return (b.sum(-1) - 1.2) ** 2 / 20


class Wrong(Planted):
    """Taken for one of the package's, which are held to their claims."""

    __module__ = "lightning_estimators.estimators.wrong"


class Peeks(Baseline):
    """A baseline of the user's that makes REINFORCE biased: the signal is the square of the cost."""

    def forward(self, cost, context):
        return cost.square(), None


def test_one_wrong_estimator_does_not_make_others_look_biased():
    candidates = [Wrong(0.3), DisARM(), MuProp(), REINFORCE(LeaveOneOut(), num_samples=4)]
    result = compare((MANY, cost), estimators=candidates, draws=60, learning_steps=5, budget=100.0)
    assert result.reference.kind == "pooled"
    assert result.reference.left_out == ["Wrong(shift=0.3)"]
    assert "left out, since their means contradict the others: Wrong(shift=0.3)" in str(result)
    assert [row.bias_z > 4 for row in result.rows] == [True, False, False, False]
    assert result.rows[0].squared_bias == pytest.approx(20 * 0.3**2 / 4, rel=0.1)  # of a mean over a batch of four


def test_candidates_of_the_user_are_in_no_reference():
    result = compare((MANY, cost), estimators=[Planted(0.3), REINFORCE(Peeks())], draws=30, learning_steps=0)
    assert result.reference.estimators == ["reference (StochasticBackprop)", "reference (REINFORCE)"]
    assert result.rows[0].bias_z > 4


def test_gradients_that_are_never_seen_are_not_called_exact():
    result = compare((MANY, lambda b: b.prod(-1)), estimators=[REINFORCE(NoBaseline()), DisARM()], draws=10)
    assert result.reference.kind == "pooled"
    assert "every estimate was 0" in result.recommendation


def test_objectives_of_several_samples_are_compared_among_themselves():
    torch.manual_seed(0)
    module = DiscreteLatentModel(VIMCO(2), image_shape=(1, 4, 4), num_latents=[2], data_mean=0.5, kl="sampled")
    images = (torch.rand(2, 1, 4, 4) > 0.5).float()
    rows = compare(module, images, [VIMCO(2), VIMCO(3), StochasticBackprop()], draws=40, budget=100.0).rows
    assert "num_samples, which must be that of the module's own" in rows[2].refused
    assert "optimises another objective than this module" in rows[3].refused
    assert all(abs(row.squared_bias) < 4 * row.squared_bias_error for row in rows[:2])
    assert rows[0].bias_z < 4
    other = compare((MANY, cost), estimators=[VIMCO()], draws=4).rows[0]
    assert "optimises another objective than the mean cost" in other.refused


def test_the_score_of_an_objective_of_several_samples_has_its_gradient():
    logits = torch.tensor([0.4, -0.7], dtype=torch.float64, requires_grad=True)
    points = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 2)

    def f(b):
        return (2 * b[..., 0] - b[..., 1] - 0.3) ** 2

    weights = Independent(Bernoulli(logits=logits), 1).log_prob(points).exp()
    (exact,) = torch.autograd.grad(expectation(f(points), weights, VIMCO(3)), logits)
    rows = logits.detach().expand(20_000, 2).clone().requires_grad_()
    CombinedScore(VIMCO(3))(Independent(Bernoulli(logits=rows), 1), f).sum().backward()
    error = rows.grad.std(0) / len(rows) ** 0.5
    assert bool(((rows.grad.mean(0) - exact).abs() < 4 * error).all())
    assert bool((exact.abs() > 10 * error).all())
