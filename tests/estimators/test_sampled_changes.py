"""StochasticBackprop(num_changes=...): what is learned from changes, what it is good for, and what it never does."""

import copy

import pytest
import torch
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Dirichlet,
    Gamma,
    Independent,
    Laplace,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
    Poisson,
)
from torch.utils.checkpoint import checkpoint

from lightning_estimators.distributions import Delta
from lightning_estimators.estimators import REBAR, REINFORCE, StochasticBackprop
from lightning_estimators.noise import CommonNoise, replay_scope
from lightning_estimators.objectives import BernoulliLinear, ExponentialCost, SquaredCost
from lightning_estimators.testing import ExactExpectation, Report, nested_moments

REPORT = Report()

SIZE = 6
WEIGHT = 0.7 * torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def bits(logits):
    return Independent(Bernoulli(logits=logits), 1)


def wavy(z):
    """Interactions of all orders, and a gradient that says little of changes."""
    return (2 * z @ WEIGHT.to(z.dtype)).sin().sum(-1) + z.prod(-1)


def step(estimator, logits, f=wavy):
    leaf = logits.clone().requires_grad_()
    value = estimator(bits(leaf), f)
    value.sum().backward()
    return value.detach(), leaf.grad


def trained(estimator, f=wavy, steps=100, batch=50):
    for seed in range(steps):
        torch.manual_seed(seed)
        step(estimator, torch.zeros(batch, SIZE), f)
    return estimator


def variance(estimator, f=wavy):
    estimator = copy.deepcopy(estimator).eval()
    torch.manual_seed(0)
    return step(estimator, torch.zeros(20_000, SIZE), f)[1].var(0).sum().item()


def sums(estimator):
    return {name: buffer.clone() for name, buffer in estimator.learned_changes.state_dict().items()}


def test_what_is_learned_takes_out_most_of_the_variance():
    fresh = StochasticBackprop(num_changes=1)
    fresh.prepare(bits(torch.zeros(1, SIZE)))
    before, after, exact = variance(fresh), variance(trained(copy.deepcopy(fresh))), variance(StochasticBackprop())
    assert after < 0.5 * before
    assert after < variance(trained(StochasticBackprop(num_changes=1, f_gradient=False)))
    assert variance(trained(StochasticBackprop(num_changes=4))) < 1.3 * exact


def test_a_cost_that_is_quadratic_is_guessed_without_error_after_a_while():
    """Its changes are the gradient and half the curvature, which is learned; what is left is that of the exact rule."""

    def quadratic(z):
        return (z @ WEIGHT.to(z.dtype)).square().sum(-1)

    learned = trained(StochasticBackprop(num_changes=1), quadratic, steps=300)
    model = learned.learned_changes.model(learned.learned_changes.past(WEIGHT.device))
    curvature = 2 * WEIGHT.square().sum(-1)  # Δ¹ = ∂f + (½ - b) ∂²f
    torch.testing.assert_close(model.coefficients[:, 0], torch.ones(SIZE), rtol=0, atol=0.1)
    torch.testing.assert_close(model.coefficients[:, 2], curvature, rtol=0.1, atol=0.05)
    # The gradient of i is linear in the others, and so are the changes: with C nothing is left of either.
    hessian = 2 * WEIGHT @ WEIGHT.T
    off_diagonal = hessian - hessian.diag().diag()
    assert (model.slopes - off_diagonal).norm() < 0.2 * off_diagonal.norm()
    assert variance(learned, quadratic) < 0.05 * variance(StochasticBackprop(), quadratic)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_cost_never_enters(bad):
    estimator = trained(StochasticBackprop(num_changes=2), steps=2)
    before = sums(estimator)
    step(estimator, torch.zeros(4, SIZE), lambda z: wavy(z) * torch.tensor([1.0, bad, 1.0, 1.0]))
    after = sums(estimator)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert estimator.diagnostics()["skipped"] == 1
    _, gradient = step(estimator, torch.zeros(4, SIZE))
    assert gradient.isfinite().all()
    assert estimator.learned_changes.draws > after["draws"]


def test_a_gradient_that_is_not_finite_is_no_guess():
    """As that of a square root at 0: the exact rule needs none, and the estimate is finite too."""
    estimator = StochasticBackprop(num_changes=1)
    for _ in range(3):
        _, gradient = step(estimator, torch.zeros(50, SIZE), lambda z: z.sqrt().sum(-1))
        assert gradient.isfinite().all()
    assert gradient.mean().item() == pytest.approx(0.25, abs=0.05)


def test_evaluation_and_no_grad_leave_the_sums_as_they_were():
    estimator = trained(StochasticBackprop(num_changes=1), steps=2)
    before = sums(estimator)
    with torch.no_grad():
        assert estimator(bits(torch.zeros(4, SIZE)), wavy).shape == (4,)
    estimator.eval()
    step(estimator, torch.zeros(4, SIZE))
    assert all(torch.equal(after, before[name]) for name, after in sums(estimator).items())


def test_an_empty_batch_leaves_the_sums_as_they_were():
    estimator = trained(StochasticBackprop(num_changes=1), steps=2)
    before = sums(estimator)
    value, gradient = step(estimator, torch.zeros(0, SIZE))
    assert value.shape == (0,)
    assert gradient.shape == (0, SIZE)
    assert all(torch.equal(after, before[name]) for name, after in sums(estimator).items())


@pytest.mark.parametrize("samples", [1, 3])
def test_a_resumed_run_goes_on_to_the_last_bit(samples):
    whole = StochasticBackprop(num_changes=2, num_samples=samples)
    trained(whole, steps=3)
    resumed = StochasticBackprop(num_changes=2, num_samples=samples)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for estimator in (whole, resumed):
        for seed in range(3):
            torch.manual_seed(seed)
            estimator.latest = step(estimator, torch.zeros(5, SIZE))[1]
    assert torch.equal(whole.latest, resumed.latest)
    assert all(torch.equal(after, sums(whole)[name]) for name, after in sums(resumed).items())


def test_another_size_is_refused():
    estimator = trained(StochasticBackprop(num_changes=1), steps=1)
    with pytest.raises(ValueError, match=r"events of 6 entries.*has 4 now.*deepcopy"):
        step(estimator, torch.zeros(5, 4), lambda z: z.sum(-1))
    with pytest.raises(RuntimeError, match="size mismatch"):
        StochasticBackpropOf(4).load_state_dict(estimator.state_dict())


def StochasticBackpropOf(size):
    estimator = StochasticBackprop(num_changes=1)
    estimator.prepare(bits(torch.zeros(1, size)))
    return estimator


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_meets_the_sums_of_the_first_pass(reentrant):
    """The draws of the pass that is repeated are in the sums by then, and a guess that knows them is biased."""
    plain = trained(StochasticBackprop(num_changes=1), steps=3)
    repeated = copy.deepcopy(plain)
    logits = torch.zeros(4, SIZE)
    for seed in range(3):
        torch.manual_seed(seed)
        _, expected = step(plain, logits)
        leaf = logits.clone().requires_grad_()
        torch.manual_seed(seed)
        checkpoint(lambda a: repeated(bits(a), wavy), leaf, use_reentrant=reentrant).sum().backward()
        torch.testing.assert_close(leaf.grad, expected)
        for name, buffer in sums(plain).items():
            torch.testing.assert_close(sums(repeated)[name], buffer)


def test_a_replay_meets_the_sums_from_before_all_and_adds_nothing():
    estimator = trained(StochasticBackprop(num_changes=1), steps=3)
    with replay_scope():
        noise = CommonNoise(WEIGHT.device)
        _, first = step(estimator, torch.zeros(4, SIZE))
        between = sums(estimator)
        with noise.replay(new_axis=5):
            _, again = step(estimator, torch.zeros(4, SIZE))
    assert torch.equal(first, again)
    assert all(torch.equal(after, between[name]) for name, after in sums(estimator).items())


@pytest.mark.parametrize("f_gradient", [None, False])
def test_a_black_box_is_guessed_without_its_gradient(f_gradient):
    def black_box(z):
        return torch.from_numpy(wavy(z).numpy() if f_gradient is None else wavy(z.detach()).numpy())

    estimator = StochasticBackprop(num_changes=1, f_gradient=f_gradient)
    _, gradient = step(estimator, torch.zeros(20_000, SIZE), black_box)
    _, exact = step(StochasticBackprop(), torch.zeros(20_000, SIZE))
    error = (gradient.mean(0) - exact.mean(0)) / ((gradient.var(0) + exact.var(0)) / 20_000).sqrt()
    assert error.abs().max() < 4


def test_costs_with_closed_changes_get_the_exact_rule():
    f = BernoulliLinear(torch.randn(5, SIZE), torch.zeros(5), torch.ones(5))
    logits = torch.zeros(4, SIZE)
    torch.manual_seed(0)
    _, sampled = step(StochasticBackprop(num_changes=1), logits, f)
    torch.manual_seed(0)
    _, exact = step(StochasticBackprop(), logits, f)
    torch.testing.assert_close(sampled, exact)
    for q, cost in (
        (Laplace(torch.zeros(3, requires_grad=True), torch.ones(3)), SquaredCost(0.5)),
        (Gamma(torch.ones(3, requires_grad=True), torch.ones(3)), ExponentialCost(-0.5)),
    ):
        leaf, gradients = (q.loc if isinstance(q, Laplace) else q.concentration), []
        for estimator in (StochasticBackprop(num_changes=1), StochasticBackprop()):
            torch.manual_seed(0)
            gradients += torch.autograd.grad(estimator(Independent(q, 1), cost), leaf)
        assert torch.equal(*gradients)


JUMPS = {
    "Laplace": lambda p: Laplace(p, p.exp()),
    "Gamma": lambda p: Gamma(p.exp(), 1 + p.exp()),
    "Normal": lambda p: Normal(p, p.exp()),
    "Poisson": lambda p: Poisson(p.exp()),
    "NegativeBinomial": lambda p: NegativeBinomial(1 + p.exp(), logits=p - 1),
    "Beta": lambda p: Beta(1 + p.exp(), 2 + p.exp()),
    "Dirichlet": lambda p: Dirichlet(1 + p.exp()),
    "OneHotCategorical": lambda p: OneHotCategorical(logits=p.reshape(*p.shape[:-1], 2, 2)),
    "Categorical": lambda p: Categorical(logits=p),
}


@pytest.mark.parametrize("num_samples", [1, 2])
@pytest.mark.parametrize("family", JUMPS)
def test_the_mean_is_that_of_the_exact_rule(family, num_samples):
    """In every family, with what was learned: the difference of two independent batches of estimates."""
    event = {"OneHotCategorical": 2, "Categorical": 0}.get(family, 1)

    def f(z):
        z = z.double().flatten(-event) if event else z.unsqueeze(-1).double()
        return (0.7 * z).sin().sum(-1) + 0.3 * (z[..., 0] * z[..., -1]).cos()

    point = torch.tensor([0.3, -0.4, 0.2, -0.1], dtype=torch.float64)

    def estimates(estimator, count):
        leaf = point.expand(count, 4).clone().requires_grad_()
        q = JUMPS[family](leaf)
        reinterpreted = len(q.batch_shape) - 1
        estimator(Independent(q, reinterpreted) if reinterpreted else q, f).sum().backward()
        return leaf.grad

    sampled = StochasticBackprop(num_changes=1, num_samples=num_samples)
    for _ in range(20):
        estimates(sampled, 50)
    assert sampled.learned_changes.draws > 0
    one, other = estimates(sampled, 40_000), estimates(StochasticBackprop(f_gradient=False), 40_000)
    error = (one.mean(0) - other.mean(0)) / ((one.var(0) + other.var(0)) / 40_000 + 1e-20).sqrt()
    assert error.abs().max() < 4.5


@pytest.mark.parametrize("outer", [REBAR, REINFORCE, StochasticBackprop, lambda: StochasticBackprop(num_changes=1)])
def test_inside_others_it_stays_unbiased(outer):
    problem = ExactExpectation(Bernoulli, layers=2)
    moments = nested_moments(problem, [outer, lambda: StochasticBackprop(num_changes=1)], samples=50_000)
    REPORT.unbiased("pairs", str(problem), moments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_changes": 0}, "integer of at least 1"),
        ({"num_changes": True}, "integer num_changes"),
        ({"num_changes": 2, "f_gradient": True}, "f_gradient=None"),
        ({"num_changes": 2, "form": "series", "order": 2}, 'form="jump"'),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        StochasticBackprop(**settings)


def test_families_without_differences_are_refused_when_prepared():
    with pytest.raises(TypeError, match="no rule for MultivariateNormal that takes f as a black box"):
        StochasticBackprop(num_changes=2).prepare(MultivariateNormal(torch.zeros(2, 3), torch.eye(3)))


def test_a_point_mass_is_backpropagation_as_ever():
    leaf = torch.ones(2, 3, requires_grad=True)
    StochasticBackprop(num_changes=2)(Independent(Delta(leaf), 1), lambda z: z.square().sum(-1)).sum().backward()
    assert torch.equal(leaf.grad, 2 * torch.ones(2, 3))
