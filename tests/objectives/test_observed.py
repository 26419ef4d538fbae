"""Costs that were observed at actions others drew: what estimators make of them, and what they refuse."""

import pytest
import torch
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Cauchy,
    Exponential,
    Gamma,
    Gumbel,
    Independent,
    Laplace,
    LogNormal,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Poisson,
    TransformedDistribution,
)
from torch.distributions.transforms import AffineTransform, TanhTransform

from lightning_estimators.baselines import LeaveOneOut, NoBaseline
from lightning_estimators.distributions import path_through
from lightning_estimators.estimators import LAX, REINFORCE, RELAX
from lightning_estimators.networks import Surrogate
from lightning_estimators.objectives import Observed
from tests.estimators.cases import CASES

B, D = 4, 3


def parameter(*shape, seed=0, positive=False):
    p = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (p.exp() if positive else p).requires_grad_()


def tanh_normal():
    loc, scale = parameter(B, D), parameter(B, D, seed=1, positive=True)
    return TransformedDistribution(Normal(loc, scale), [AffineTransform(0.5, 2.0), TanhTransform()]), [loc, scale]


def with_parameters(family, *signs):
    parameters = [parameter(B, D, seed=i, positive=positive) for i, positive in enumerate(signs)]
    return family(*parameters), parameters


def multivariate():
    loc, factor = parameter(B, D), parameter(B, D, D, seed=1)
    q = MultivariateNormal(loc, scale_tril=factor.tril(-1) + torch.diag_embed(factor.diagonal(dim1=-2, dim2=-1).exp()))
    return q, [loc, factor]


PATHS = {
    "normal": lambda: with_parameters(Normal, False, True),
    "laplace": lambda: with_parameters(Laplace, False, True),
    "cauchy": lambda: with_parameters(Cauchy, False, True),
    "gumbel": lambda: with_parameters(Gumbel, False, True),
    "exponential": lambda: with_parameters(Exponential, True),
    "gamma": lambda: with_parameters(Gamma, True, True),
    "log-normal": lambda: with_parameters(LogNormal, False, True),
    "squashed normal": tanh_normal,
    "multivariate normal": multivariate,
}


@pytest.mark.parametrize("name", PATHS)
def test_the_path_through_a_sample_is_the_one_on_which_rsample_drew_it(name):
    q, parameters = PATHS[name]()
    z = q.rsample()
    upstream = torch.randn_like(z)
    expected = torch.autograd.grad((z * upstream).sum(), parameters, retain_graph=True)
    path = path_through(q, z)
    found = torch.autograd.grad((path * upstream).sum(), parameters)
    assert torch.allclose(path, z, rtol=1e-9)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-9)


def test_a_path_that_is_not_known_is_refused_in_words():
    q = Beta(parameter(B, positive=True), parameter(B, positive=True))
    with pytest.raises(TypeError, match="the path of Beta through a sample that was drawn before is not known"):
        LAX()(q, Observed(q.sample(), torch.zeros(B, dtype=torch.float64)))


@pytest.mark.parametrize("name", PATHS)
def test_lax_combines_the_score_with_the_path_through_the_action(name):
    q, parameters = PATHS[name]()
    z, costs = q.sample(), torch.randn(q.batch_shape, dtype=torch.float64)
    lax = LAX(Surrogate([5], "tanh")).double()
    loss = lax(q, Observed(z, costs))
    found = torch.autograd.grad(loss.sum(), parameters, retain_graph=True)
    r = lax.surrogate(path_through(q, z).reshape(*q.batch_shape, -1))
    formula = ((costs - r).detach() * q.log_prob(z) + r).sum()
    for a, b in zip(found, torch.autograd.grad(formula, parameters, retain_graph=True), strict=True):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-9)
    assert torch.equal(loss.detach(), costs)
    loss.sum().backward()
    assert all(p.grad is not None for p in lax.parameters())


def test_reinforce_weights_the_score_of_the_action():
    q, (loc, scale) = PATHS["normal"]()
    z, costs = q.sample(), torch.randn(B, D, dtype=torch.float64)
    found = torch.autograd.grad(REINFORCE(NoBaseline())(q, Observed(z, costs)).sum(), [loc, scale])
    expected = torch.autograd.grad((costs * q.log_prob(z)).sum(), [loc, scale])
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b)


def test_relax_draws_both_relaxed_samples_given_the_action(monkeypatch):
    """With c = r(z) linear the estimate can be written down from the conditional samples of Tucker et al. (2017)."""
    u, v = torch.rand(1, B, D, dtype=torch.float64), torch.rand(1, B, D, dtype=torch.float64)
    queue = [u, v]
    monkeypatch.setattr("lightning_estimators.estimators.relaxation.uniform", lambda *_, **__: queue.pop(0))
    logits, costs = parameter(B, D), torch.randn(B, dtype=torch.float64)
    q = Independent(Bernoulli(logits=logits), 1)
    b = q.sample()
    relax = RELAX(torch.nn.Linear(D, 1).double(), learn_temperature=False)
    (found,) = torch.autograd.grad(relax(q, Observed(b, costs)).sum(), logits)
    p = torch.sigmoid(logits.detach())

    def given_b(noise):
        leaf = logits.detach().clone().requires_grad_()
        probability = torch.sigmoid(leaf)
        uniform = b * (noise * probability + 1 - probability) + (1 - b) * noise * (1 - probability)
        z = leaf + torch.logit(uniform)
        return z.detach(), torch.autograd.grad(z.sum(), leaf)[0]

    (_, _), (z_tilde, slope) = given_b(u[0]), given_b(v[0])
    weight = relax.surrogate.weight.detach()[0]
    c = z_tilde @ weight + relax.surrogate.bias.detach()
    expected = (costs - c).unsqueeze(-1) * (b - p) + weight - weight * slope
    assert torch.allclose(found, expected, rtol=1e-9)
    assert not queue


def supported(estimator):
    leaf = torch.zeros(B, 2, requires_grad=True)
    one_hot = OneHotCategorical(logits=leaf.unsqueeze(-1))
    continuous = Normal(leaf, torch.ones(B, 2)), Gamma(leaf.exp(), leaf.exp())
    for q in (Bernoulli(logits=leaf), one_hot, *continuous, Poisson(leaf.exp())):
        try:
            estimator.check(Independent(q, 1))
        except TypeError:
            continue
        return Independent(q, 1)
    raise AssertionError(f"no distribution for {type(estimator).__name__}")


def test_every_other_estimator_refuses_with_the_reason():
    taken = set()
    for name, make in CASES.items():
        estimator = make()
        q = supported(estimator)
        if estimator.takes_observed_costs:
            taken.add(name.partition("/")[0])
            continue
        with pytest.raises(TypeError, match=r"(evaluates|differentiates).* nowhere else\. Use REINFORCE"):
            estimator(q, Observed(q.sample(), torch.zeros(B)))
    assert taken == {"REINFORCE", "RELAX", "LAX"}


def test_an_index_is_taken_as_the_class_it_is():
    logits, costs = parameter(B, D), torch.randn(B, dtype=torch.float64)
    q, index = Categorical(logits=logits), torch.tensor([0, 2, 1, 1])
    loss = REINFORCE(NoBaseline())(q, Observed(index, costs, q.log_prob(index)))
    found = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    expected = torch.autograd.grad((costs * q.log_prob(index)).sum(), logits)
    assert torch.allclose(found[0], expected[0])


def test_several_answers_to_each_question_leave_one_another_out():
    logits, samples = parameter(B, D), 5
    q = OneHotCategorical(logits=logits)
    answers = q.sample((samples,))
    rewards = torch.randn(samples, B, dtype=torch.float64)
    estimator = REINFORCE(LeaveOneOut(), num_samples=samples)
    loss = estimator(q, Observed(answers, -rewards, q.log_prob(answers)))
    assert torch.allclose(loss, -rewards.mean(0))
    (found,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    others = (rewards.sum(0) - rewards) / (samples - 1)
    expected = torch.autograd.grad((-(rewards - others) * q.log_prob(answers)).mean(0).sum(), logits)
    assert torch.allclose(found, expected[0])
    with pytest.raises(ValueError, match=r"shape sample_shape \+ batch_shape \+ event_shape = \(5, 4, 3\), and"):
        estimator(q, Observed(answers[:4], -rewards[:4]))


def test_an_axis_of_one_sample_may_be_there_or_not():
    q = OneHotCategorical(logits=parameter(B, D))
    z, costs = q.sample(), torch.randn(B, dtype=torch.float64)
    estimator = REINFORCE(NoBaseline())
    assert torch.equal(estimator(q, Observed(z, costs)), estimator(q, Observed(z[None], costs[None])))
    inside = OneHotCategorical(logits=parameter(1, B, D))  # as the cost of another estimator sees it
    assert estimator(inside, Observed(z[None], costs[None])).shape == (1, B)


def test_costs_keep_their_own_gradient_and_are_the_value_without_one():
    q = OneHotCategorical(logits=parameter(B, D))
    costs = torch.randn(B, dtype=torch.float64, requires_grad=True)
    observed = Observed(q.sample(), costs)
    REINFORCE()(q, observed).sum().backward()
    assert torch.equal(costs.grad, torch.ones_like(costs))
    with torch.no_grad():
        for estimator in (REINFORCE(), RELAX(Surrogate([3])).double()):
            assert torch.equal(estimator(q, observed), costs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_log_probabilities_of_another_policy_are_refused_and_rounding_is_not(dtype):
    logits = (3 * parameter(64, D)).detach().to(dtype).requires_grad_()
    q = OneHotCategorical(logits=logits, validate_args=False)
    z = torch.eye(D, dtype=dtype)[torch.arange(64) % D]
    costs, log_prob = torch.zeros(64, dtype=dtype), q.log_prob(z).detach()
    rounding = log_prob * (1 + 2 * torch.finfo(dtype).eps * torch.randn(64)).to(dtype)
    REINFORCE()(q, Observed(z, costs, rounding))
    older = OneHotCategorical(logits=logits + 0.5 * torch.eye(D, dtype=dtype)[0], validate_args=False)
    with pytest.raises(ValueError, match=r"acted by another policy: the log-probabilities of \d+ of 64 actions"):
        REINFORCE()(q, Observed(z, costs, older.log_prob(z)))
    impossible = log_prob.clone()
    impossible[5] = -torch.inf
    with pytest.raises(ValueError, match="of 1 of 64 actions differ"):
        REINFORCE()(q, Observed(z, costs, impossible))


def test_half_precision_gets_gradients_of_its_own_dtype():
    logits = torch.zeros(B, D, dtype=torch.bfloat16, requires_grad=True)
    z = torch.eye(D)[torch.arange(B) % D]
    loss = RELAX(Surrogate([3], "tanh"))(OneHotCategorical(logits=logits), Observed(z, torch.randn(B)))
    loss.sum().backward()
    assert logits.grad.dtype == torch.bfloat16
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Observed(torch.zeros(4, 3), torch.zeros(3)), "one cost for each action"),
        (lambda: Observed(torch.zeros(4), torch.zeros(4, 3)), "one cost for each action"),
        (lambda: Observed(torch.zeros(4, 3), torch.zeros(4), torch.zeros(3)), r"log_prob of the shape of the costs"),
        (lambda: Observed(torch.zeros(4, 3), torch.zeros(4))(torch.ones(4, 3)), "unknown anywhere else"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
