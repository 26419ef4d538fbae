"""The gradient of a policy against enumeration of all trajectories, the estimator's noise integrated by quadrature.

So a bias is a number here, not the outcome of a statistical test: what is unbiased agrees to rounding.
"""

import pytest
import torch
from torch import nn

from lightning_estimators.baselines import LearnedBaseline, NoBaseline
from lightning_estimators.estimators import REINFORCE, RELAX
from lightning_estimators.modules import PolicyGradient
from lightning_estimators.networks import Surrogate
from modules.tabular import HORIZON, STATES, Table, TabularMDP, ValueTable

EXACT = 1e-11


# Noise u = sigmoid(x) on a grid in x: the trapezoidal rule of an analytic integrand converges geometrically.
def quadrature(count=181):
    grid = torch.linspace(-36, 36, count, dtype=torch.float64)
    nodes = torch.sigmoid(grid)
    return nodes, nodes * (1 - nodes) * (grid[1] - grid[0])


def learned_baseline():
    return REINFORCE(LearnedBaseline(nn.Sequential(nn.LazyLinear(10), nn.Tanh(), nn.Linear(10, 1))))


ESTIMATORS = {
    "REINFORCE": lambda: REINFORCE(NoBaseline()),
    "REINFORCE/learned": learned_baseline,
    "RELAX": lambda: RELAX(Surrogate([10], "tanh")),
    "RELAX/0.3": lambda: RELAX(Surrogate([10], "tanh"), temperature=0.3),
    "RELAX/ReLU": lambda: RELAX(Surrogate([10], "relu")),
}


@pytest.fixture
def mdp():
    return TabularMDP()


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def build(mdp, estimator="REINFORCE", *, values=None, gamma=1.0, **settings):
    torch.manual_seed(0)
    table = torch.randn(STATES, 1)
    critic = {"use_critic": False} if values is None else {"critic": ValueTable(values)}
    model = PolicyGradient(
        ESTIMATORS[estimator](),
        mdp.observation_size,
        "multi_binary",
        [1],
        policy=Table(table),
        gamma=gamma,
        entropy_coef=0.0,
        critic_coef=0.0,
        **critic,
        **settings,
    )
    model.estimator.requires_grad_(requires_grad=False)  # what it would learn costs a second derivative
    return model


def log_policy(model):
    logits = model.policy.table
    return nn.functional.logsigmoid(torch.cat([-logits, logits], -1))


def expected_gradient(model, mdp, monkeypatch, count=181):
    """The mean of the gradient of the return over trajectories and noise, shape (states, 1)."""
    noise, noise_weights = quadrature(count)
    copies = count if isinstance(model.estimator, RELAX) else 1
    batch = mdp.rollout(model, copies)
    trajectories = len(mdp.states)

    def nodes(batch_shape, event_shape, **_):
        by_step = noise.repeat_interleave(trajectories).repeat(HORIZON)
        return by_step.reshape(*batch_shape, *event_shape)

    monkeypatch.setattr("lightning_estimators.estimators.relaxation.uniform", nodes)
    costs = model.loss(batch).reshape(HORIZON, copies, trajectories)
    weights = mdp.weights(log_policy(model))
    if copies > 1:
        weights = noise_weights.unsqueeze(-1) * weights
    (gradient,) = torch.autograd.grad((weights * costs).sum(), model.policy.table)
    return -gradient


def exact_gradient(model, mdp, gamma=1.0):
    return torch.autograd.grad(mdp.objective(log_policy(model), gamma), model.policy.table)[0]


def relative_bias(found, exact):
    return float((found - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "RELAX/ReLU"])
def test_returns_to_go_give_the_gradient_of_the_return(name, mdp, monkeypatch):
    model = build(mdp, name)
    assert relative_bias(expected_gradient(model, mdp, monkeypatch), exact_gradient(model, mdp)) < EXACT


def test_a_surrogate_with_kinks_is_as_unbiased_and_only_harder_to_integrate(mdp, monkeypatch):
    """The trapezoidal rule converges slowly where a slope jumps (.027, .0109, .0043, .0009 at steps half as large)."""
    model = build(mdp, "RELAX/ReLU")
    exact = exact_gradient(model, mdp)
    coarse, fine = (relative_bias(expected_gradient(model, mdp, monkeypatch, n), exact) for n in (46, 361))
    assert 0.01 < coarse < 0.05
    assert fine < coarse / 20  # a bias would stay


def wrong(values):
    """Values that are off by about a half, but for the end, where nothing follows."""
    noise = 0.5 * torch.randn(HORIZON + 1, STATES, generator=torch.Generator().manual_seed(1))
    noise[-1] = 0
    return values + noise


@pytest.mark.parametrize("name", ["REINFORCE", "RELAX"])
@pytest.mark.parametrize(
    ("gae_lambda", "is_exact", "bias"),
    [(1.0, False, 0.0), (0.5, True, 0.0), (0.95, False, 0.0195), (0.5, False, 0.2186), (0.0, False, 0.4886)],
)
def test_a_critic_biases_below_lambda_1_as_far_as_it_is_wrong(name, gae_lambda, is_exact, bias, mdp, monkeypatch):
    values = mdp.values(log_policy(build(mdp)))
    model = build(mdp, name, values=values if is_exact else wrong(values), gae_lambda=gae_lambda)
    found = relative_bias(expected_gradient(model, mdp, monkeypatch), exact_gradient(model, mdp))
    assert found == pytest.approx(bias, rel=0.01, abs=EXACT)


@pytest.mark.parametrize("name", ["REINFORCE", "RELAX"])
@pytest.mark.parametrize("discount_steps", [False, True])
def test_the_gradient_of_the_discounted_return_needs_discounted_steps(name, discount_steps, mdp, monkeypatch):
    model = build(mdp, name, gamma=0.9, discount_steps=discount_steps)
    found = relative_bias(expected_gradient(model, mdp, monkeypatch), exact_gradient(model, mdp, 0.9))
    assert found == pytest.approx(0.0 if discount_steps else 0.0806, rel=0.01, abs=EXACT)


def test_advantages_normalized_by_the_batch_are_biased(mdp):
    """Every trajectory as a batch of its own, as code that learns from one episode at a time does."""
    values = mdp.values(log_policy(build(mdp)))
    model = build(mdp, values=values, gae_lambda=1.0, normalize_advantages="batch")
    batch, found = mdp.rollout(model), torch.zeros(STATES, 1)
    for column, weight in enumerate(mdp.weights(log_policy(model))):
        one = type(batch)(*(None if part is None else part[:, column : column + 1] for part in batch))
        found -= weight * torch.autograd.grad(model.loss(one).sum(), model.policy.table)[0]
    exact = exact_gradient(model, mdp)
    assert relative_bias(found, exact) == pytest.approx(0.4528, rel=0.01)
    # Not a matter of scale: the direction is another.
    assert float(torch.cosine_similarity(found, exact, dim=0)) == pytest.approx(0.9066, rel=0.01)


def test_advantages_scaled_by_past_ones_keep_the_direction(mdp, monkeypatch):
    model = build(mdp, "RELAX", normalize_advantages="running")
    exact = exact_gradient(model, mdp)
    expected_gradient(model, mdp, monkeypatch)  # a first batch, which later ones are scaled by
    scale = float(model.past_scale.mean_square.sqrt())
    found = expected_gradient(model, mdp, monkeypatch)
    assert scale > 1.1
    assert relative_bias(found * scale, exact) < EXACT
