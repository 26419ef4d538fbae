"""Gaussian policies by quadrature, masked choices by enumeration, and the noise with which a policy acts."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_estimators.baselines import NoBaseline
from lightning_estimators.estimators import LAX, REINFORCE, RELAX
from lightning_estimators.modules import PolicyGradient
from lightning_estimators.networks import Surrogate
from lightning_estimators.objectives import Observed
from lightning_estimators.policies import CollapseWatch, DiscreteActions
from lightning_estimators.rollout import Rollout


def bandit(model, observations, actions, rewards, mask=None):
    """A batch of one step in as many environments as there are observations, acted by the model."""
    with torch.no_grad():
        log_prob = model.distribution(observations, mask).log_prob(
            model.actions.from_environment(actions).to(observations.dtype)
        )
    ended = torch.ones(1, len(observations), dtype=torch.bool)
    step = (observations[None], actions[None], rewards[None], ended, torch.zeros_like(ended), observations[None])
    mask = None if mask is None else mask[None]
    return Rollout(*step, log_prob[None], torch.zeros_like(ended, dtype=torch.int64), rewards[None], mask)


def gradients(model, loss):
    parameters = [*model.policy.parameters(), *model.actions.parameters()]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


@pytest.mark.parametrize("make", [lambda: REINFORCE(NoBaseline()), lambda: LAX(Surrogate([6], "tanh"))])
def test_gaussian_policies_have_the_gradient_of_the_mean_reward(make):
    torch.manual_seed(0)
    states, size = 3, 2
    model = PolicyGradient(
        make(), states, "box", [size], policy=nn.Linear(states, size), use_critic=False, entropy_coef=0.0
    ).double()
    x, w = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(40))
    nodes = torch.cartesian_prod(x, x)
    weights = torch.cartesian_prod(w / w.sum(), w / w.sum()).prod(-1).repeat(states)
    seen = torch.eye(states, dtype=torch.float64).repeat_interleave(len(nodes), 0)
    target = torch.randn(states, size, dtype=torch.float64)

    def reward(actions):
        return torch.cos(0.7 * actions.sum(-1)) - 0.2 * (actions - seen @ target).square().sum(-1)

    q = model.distribution(seen).base_dist
    actions = q.loc + q.scale * nodes.repeat(states, 1)
    exact = gradients(model, (weights * reward(actions)).sum())
    batch = bandit(model, seen, actions.detach(), reward(actions).detach())
    found = gradients(model, -(weights * model.loss(batch)).sum())
    assert (found - exact).abs().max() < 1e-10 * exact.abs().max()


def masked_model(make):
    torch.manual_seed(0)
    return PolicyGradient(
        make(), 2, "multi_discrete", [3, 2], policy=nn.Linear(2, 5), use_critic=False, entropy_coef=0.0
    ).double()


MASK = torch.tensor([True, False, True, True, True])


def test_masked_choices_have_the_gradient_of_the_mean_reward_and_are_never_drawn():
    model = masked_model(lambda: REINFORCE(NoBaseline()))
    choices = torch.cartesian_prod(torch.tensor([0, 2]), torch.tensor([0, 1]))  # of the first choice 1 is forbidden
    seen = torch.tensor([[0.3, -1.0]], dtype=torch.float64).expand(4, 2)
    rewards, mask = torch.randn(4, dtype=torch.float64), MASK.expand(4, 5)
    logits = model.policy(seen)
    first = logits[:, [0, 2]].log_softmax(-1).gather(-1, (choices[:, :1] == 2).long())
    second = logits[:, 3:].log_softmax(-1).gather(-1, choices[:, 1:])
    probabilities = (first + second).squeeze(-1).exp()
    assert probabilities.sum().item() == pytest.approx(1.0)
    exact = gradients(model, (probabilities * rewards).sum())
    batch = bandit(model, seen, choices, rewards, mask)
    assert torch.allclose(batch.log_prob[0].exp(), probabilities)
    found = gradients(model, -(probabilities.detach() * model.loss(batch)).sum())
    assert (found - exact).abs().max() < 1e-12
    drawn, _ = model.act(seen[:1].expand(1000, 2), MASK.expand(1000, 5))
    assert set(drawn[:, 0].tolist()) == {0, 2}
    with pytest.raises(ValueError, match="forbids every alternative"):
        model.act(seen, torch.zeros(4, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask of the shape of the logits"):
        model.act(seen, mask[:, :4])


def test_relax_with_masks_and_choices_of_different_sizes_is_unbiased():
    """By Monte Carlo, within 5 standard errors: nothing that is forbidden or padded disturbs the estimate."""
    model, rows = masked_model(lambda: RELAX(Surrogate([6], "tanh"))), 100_000
    model.estimator.requires_grad_(requires_grad=False)
    reference = masked_model(lambda: REINFORCE(NoBaseline()))
    one = torch.tensor([[0.3, -1.0]], dtype=torch.float64)
    seen, mask = one.expand(rows, 2), MASK.expand(rows, 5)
    with model.acting(0):
        actions, _ = model.act(seen, mask)
    rewards = (actions[:, 0] - 0.5 * actions[:, 1] * actions[:, 0]).double()
    outputs = model.policy(seen).detach().requires_grad_()
    q = model.actions(outputs, mask)
    samples = model.actions.from_environment(actions)
    (draws,) = torch.autograd.grad(model.estimator(q, Observed(samples, -rewards), context=seen).sum(), outputs)
    mean, error = draws.mean(0), draws.std(0) / rows**0.5
    choices = torch.cartesian_prod(torch.tensor([0, 2]), torch.tensor([0, 1]))
    leaf = reference.policy(one).detach().expand(4, 5).clone().requires_grad_()
    exact_q = reference.actions(leaf, MASK.expand(4, 5))
    probability = exact_q.log_prob(reference.actions.from_environment(choices).double()).exp()
    value = -(probability * (choices[:, 0] - 0.5 * choices[:, 1] * choices[:, 0])).sum()
    exact = torch.autograd.grad(value, leaf)[0].sum(0)
    assert exact[1] == mean[1] == 0
    assert ((mean - exact).abs() <= 5 * error + 1e-12).all()


@pytest.mark.parametrize("same_stream", [False, True])
def test_acting_needs_a_stream_of_noise_of_its_own(same_stream):
    """Seeded like the training step, the relaxed samples that RELAX draws given an action depend on it otherwise."""
    torch.manual_seed(0)
    rows = 200_000
    model = PolicyGradient(
        RELAX(Surrogate([10], "tanh")), 1, "multi_binary", [1], policy=nn.Linear(1, 1), use_critic=False, entropy_coef=0
    )
    model.estimator.requires_grad_(requires_grad=False)
    with torch.no_grad():
        model.policy.bias.fill_(0.4)
        model.estimator.surrogate.layers[-1].weight.mul_(5)
    seen = torch.zeros(rows, 1)
    with model.noise(0) if same_stream else model.acting(0):  # 0: the stream of training steps
        actions, _ = model.act(seen)
    outputs = model.policy(seen).detach().requires_grad_()
    model.policy = nn.Identity()
    batch = bandit(model, outputs, actions, -actions.squeeze(-1).float())
    with model.noise(0):
        costs = model.loss(batch)
    (draws,) = torch.autograd.grad(costs.sum(), outputs)
    exact = torch.sigmoid(torch.tensor(0.4)) * torch.sigmoid(torch.tensor(-0.4))
    z = abs(draws.mean() - exact) / (draws.std() / rows**0.5)
    assert z > 20 if same_stream else z < 5


def test_a_collapse_is_told_once_and_only_while_returns_fall():
    watch = CollapseWatch()
    watch.returns.extend([1.0] * 50 + [2.0] * 50)
    watch.look(0.001)
    watch.returns.extend([0.5] * 50)
    watch.look(0.02)
    with pytest.warns(UserWarning, match="policy has collapsed: it is 0.10% as random"):
        watch.look(0.001)
    watch.look(0.001)


@pytest.mark.parametrize("sizes", [[3], [2, 2], [3, 1, 2]])
def test_choices_survive_the_way_to_the_environment_and_back(sizes):
    actions = DiscreteActions(sizes)
    q = actions(torch.randn(50, actions.num_outputs))
    samples = q.sample()
    index = actions.to_environment(samples)
    assert (index < torch.tensor(sizes)).all()
    assert torch.equal(actions.from_environment(index), samples)
    assert float(actions.exploration(actions(torch.zeros(2, actions.num_outputs)))) == pytest.approx(1.0)
