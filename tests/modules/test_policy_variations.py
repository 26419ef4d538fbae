"""Policy gradients against enumeration: several choices at once, masks, and baselines that look elsewhere."""

import pytest
import torch
from torch import nn

from lightning_estimators.baselines import NoBaseline
from lightning_estimators.estimators import REINFORCE, RELAX, Enumeration, StochasticBackprop
from lightning_estimators.modules import ExpectedPolicyGradient, PolicyGradient
from lightning_estimators.policies import less_the_others
from modules.tabular import HORIZON, STATES, JointMDP, Table, TabularMDP, ValueTable

EXACT = 1e-11
PLAIN = {"entropy_coef": 0.0, "critic_coef": 0.0, "gamma": 1.0}


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def log_policy(model, mdp):
    """Of every combination of choices in every state."""
    every = mdp.in_form_of(model, torch.arange(mdp.num_actions))
    samples = model.actions.from_environment(every).double()
    outputs = model.policy.table.unsqueeze(1).expand(-1, mdp.num_actions, -1)
    mask = None if mdp.mask is None else mdp.mask.unsqueeze(1).expand_as(outputs)
    return model.actions(outputs, mask).log_prob(samples.expand(STATES, *samples.shape))


def relative_bias(model, mdp):
    (exact,) = torch.autograd.grad(mdp.objective(log_policy(model, mdp)), model.policy.table)
    costs = model.loss(mdp.rollout(model)).reshape(HORIZON, -1)
    (found,) = torch.autograd.grad((mdp.weights(log_policy(model, mdp)) * costs).sum(), model.policy.table)
    return float((exact + found).abs().max() / exact.abs().max())


MASK = torch.tensor([[1, 1, 0, 1, 1], [0, 1, 1, 1, 1], [1, 1, 1, 0, 1]]).bool()


@pytest.mark.parametrize(
    ("kind", "sizes", "mdp"),
    [
        ("multi_discrete", [3, 2], JointMDP([3, 2], seed=3)),
        ("multi_discrete", [3, 2], JointMDP([3, 2], MASK, seed=4)),
        ("discrete", [3], TabularMDP(3, seed=5)),
        ("multi_binary", [2], JointMDP([2, 2], seed=6)),
    ],
)
def test_several_choices_and_masks_have_the_gradient_of_the_return(kind, sizes, mdp):
    torch.manual_seed(1)
    outputs = sizes[0] if kind == "multi_binary" else sum(sizes)
    table = Table(torch.randn(STATES, outputs))
    model = PolicyGradient(
        REINFORCE(NoBaseline()), mdp.observation_size, kind, sizes, policy=table, use_critic=False, **PLAIN
    )
    assert relative_bias(model, mdp) < EXACT
    if mdp.mask is not None:  # and what is forbidden is left alone
        (gradient,) = torch.autograd.grad(model.loss(mdp.rollout(model)).sum(), table.table)
        assert gradient[~mdp.mask].abs().max() == 0


class ActionTable(nn.Module):
    """A network that looks Q up by state, time and action."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(values)  # (HORIZON + 1, states, actions)

    def forward(self, joined):
        actions = self.values.shape[-1]
        seen, action = joined.split([joined.shape[-1] - actions, actions], -1)
        state, time = seen[..., :STATES].argmax(-1), seen[..., STATES:].argmax(-1)
        return (self.values[time, state] * action).sum(-1, keepdim=True)


@pytest.mark.parametrize("changes", [StochasticBackprop, Enumeration])
@pytest.mark.parametrize(
    ("corrected", "is_exact", "bias"),
    [(True, True, 0.0), (True, False, 0.0), (False, True, 0.0), (False, False, 0.2167)],
)
def test_a_wrong_action_critic_biases_only_without_correction(changes, corrected, is_exact, bias):
    torch.manual_seed(1)
    mdp = TabularMDP(3, seed=7)
    table = torch.randn(STATES, 3)
    values = mdp.values(table.log_softmax(-1))
    q = torch.stack([mdp.reward[t] + mdp.transition @ values[t + 1] - values[t, :, None] for t in range(HORIZON)])
    q = torch.cat([q, torch.zeros_like(q[:1])]) + (0.0 if is_exact else 0.5 * torch.randn(HORIZON + 1, STATES, 3))
    model = ExpectedPolicyGradient(
        REINFORCE(NoBaseline()),
        mdp.observation_size,
        "discrete",
        [3],
        policy=Table(table),
        critic=ValueTable(values),
        gae_lambda=1.0,
        changes=changes(),
        corrected=corrected,
        action_values=ActionTable(q),
        **PLAIN,
    )
    assert relative_bias(model, mdp) == pytest.approx(bias, rel=0.05, abs=EXACT)


def test_the_action_critic_learns_the_advantage_and_nothing_else_moves_it():
    torch.manual_seed(1)
    mdp = TabularMDP(3, seed=7)
    settings = {"use_critic": False, "gamma": 1.0, "entropy_coef": 0.0, "critic_coef": 1.0}
    model = ExpectedPolicyGradient(
        REINFORCE(NoBaseline()), mdp.observation_size, "discrete", [3], policy=Table(torch.zeros(STATES, 3)), **settings
    )
    batch = mdp.rollout(model)
    states, advantages = batch.observations.flatten(0, 1), model.advantages(batch, torch.zeros_like(batch.rewards))
    errors = (
        model.critic_of_actions(states, model.actions.from_environment(batch.actions.flatten())) - advantages.flatten()
    )
    parameters = list(model.critic_of_actions.parameters())
    expected = torch.autograd.grad(errors.square().mean(), parameters)
    for one, other in zip(expected, torch.autograd.grad(model.loss(batch).mean(), parameters), strict=True):
        torch.testing.assert_close(one, other)
    assert set(parameters) <= set(model.critic_parameters())


def test_an_estimator_that_would_not_be_used_is_refused():
    with pytest.raises(ValueError, match="corrected=False leaves out the term that RELAX would learn from"):
        ExpectedPolicyGradient(RELAX(), 3, "discrete", [3], corrected=False)


def test_a_baseline_from_the_other_environments_is_unbiased_and_lowers_the_variance():
    """Over all pairs of trajectories in two environments, each with its probability."""
    torch.manual_seed(1)
    mdp = TabularMDP(2, seed=8)
    table = Table(torch.randn(STATES, 2))
    settings = {"policy": table, "use_critic": False, **PLAIN}
    model = PolicyGradient(REINFORCE(NoBaseline()), mdp.observation_size, "discrete", [2], **settings)
    batch = mdp.rollout(model)
    advantages = model.advantages(batch, torch.zeros_like(batch.rewards))  # (HORIZON, trajectories)
    chosen = nn.functional.one_hot(mdp.actions, 2) - table.table.detach().softmax(-1)[mdp.states]
    scores = torch.einsum("nts,nta->tnsa", nn.functional.one_hot(mdp.states, STATES).double(), chosen).flatten(2)
    weights = mdp.weights(log_policy(model, mdp))
    n = len(weights)
    pairs = torch.stack([advantages[:, :, None].expand(-1, n, n), advantages[:, None, :].expand(-1, n, n)], 1)

    def moments(signal):
        first = torch.einsum("tij,tig->ijg", signal[:, 0], scores)
        second = torch.einsum("tij,tjg->ijg", signal[:, 1], scores)
        draws, probability = (first + second) / 2, weights[:, None, None] * weights[None, :, None]
        mean = (probability * draws).sum((0, 1))
        return mean, float((probability * (draws - mean).square()).sum())

    (exact,) = torch.autograd.grad(mdp.objective(log_policy(model, mdp)), table.table)
    (plain, variance), (mean, lower) = moments(pairs), moments(less_the_others(pairs))
    assert (plain - exact.flatten()).abs().max() < EXACT
    assert (mean - exact.flatten()).abs().max() < EXACT
    assert lower < 0.8 * variance
    centred = moments(pairs - pairs.mean(1, keepdim=True))[0]  # with the action's own part in the mean
    assert centred.numpy() == pytest.approx(0.5 * exact.flatten().numpy())
    # And this is what the module does with it.
    model.leave_one_out = True
    (found,) = torch.autograd.grad(-model.loss(batch).sum(), table.table)
    assert found.flatten().numpy() == pytest.approx(
        torch.einsum("tn,tng->g", less_the_others(advantages), scores).numpy()
    )


def test_a_single_environment_has_no_others():
    with pytest.raises(ValueError, match="at least two of them"):
        less_the_others(torch.zeros(3, 1))
