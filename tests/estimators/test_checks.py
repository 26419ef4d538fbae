"""What estimators refuse before, or instead of, giving a wrong number."""

import warnings

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.distributions import Bernoulli, Gamma, Independent, Normal, OneHotCategorical, Poisson, RelaxedBernoulli

from lightning_estimators.baselines import LearnedBaseline, LeaveOneOut
from lightning_estimators.estimators import (
    LAX,
    REBAR,
    REINFORCE,
    RELAX,
    Concrete,
    Enumeration,
    Fini,
    GeneralizedReparameterization,
    Pathwise,
    ReinMax,
    RelaxedREBAR,
    StochasticBackprop,
    StraightThrough,
)
from lightning_estimators.networks import Surrogate
from lightning_estimators.noise import uniform


def surrogate():
    return Surrogate([3], activation="tanh")


def bernoulli(*shape):
    return Independent(Bernoulli(logits=torch.zeros(*shape, requires_grad=True)), 1)


NUMBERS = [REINFORCE, REBAR, StochasticBackprop, lambda: RELAX(surrogate()), lambda: RelaxedREBAR(surrogate())]


@pytest.mark.parametrize("make", NUMBERS)
def test_second_derivatives_of_an_estimate_are_refused(make):
    logits = torch.zeros(5, 2, requires_grad=True)
    estimator = make()
    loss = estimator(Independent(Bernoulli(logits=logits**2 + logits), 1), lambda b: (b - 0.3).square().sum(-1))
    (gradient,) = torch.autograd.grad(loss.mean() ** 2, logits, create_graph=True)
    with pytest.raises(ValueError, match="a second derivative was asked for"):
        torch.autograd.grad(gradient.sum(), logits)


ONCE = {
    "implicit": (Pathwise, lambda a: Independent(Gamma(a.exp(), 1.0), 1)),
    "standardised": (GeneralizedReparameterization, lambda a: Independent(Gamma(a.exp(), 1.0), 1)),
    "straight through": (StraightThrough, lambda a: Independent(Bernoulli(logits=a), 1)),
    "ReinMax": (ReinMax, lambda a: Independent(Bernoulli(logits=a), 1)),
    "counts": (Fini, lambda a: Independent(Poisson(a.exp()), 1)),
}


@pytest.mark.parametrize("name", ONCE)
def test_second_derivatives_of_a_path_that_has_one_are_refused(name):
    make, build = ONCE[name]
    at = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="a second derivative was asked for"):
        torch.autograd.functional.hessian(lambda a: make()(build(a), lambda z: z.square().sum(-1)).sum(), at)


@pytest.mark.parametrize("name", ONCE)
def test_a_second_derivative_in_what_the_cost_depends_on_needs_the_first_of_the_path_only(name):
    make, build = ONCE[name]
    leaf, weight = torch.zeros(4, 2, requires_grad=True), torch.ones((), requires_grad=True)
    loss = make()(build(leaf), lambda z: weight**2 * z.square().sum(-1)).sum()
    (slope,) = torch.autograd.grad(loss, weight, create_graph=True)  # twice the loss
    of_slope, of_loss = (torch.autograd.grad(y, leaf, create_graph=True)[0] for y in (slope, loss))
    torch.testing.assert_close(of_slope, 2 * of_loss)
    (mixed,) = torch.autograd.grad(of_loss.sum(), weight)
    torch.testing.assert_close(mixed, 2 * of_loss.sum().detach())


def test_a_hessian_of_an_estimate_is_refused_and_one_of_the_exact_expectation_is_right():
    def loss(estimator, logits):
        return estimator(Bernoulli(logits=logits), lambda b: (b - 0.3).square()).sum()

    at = torch.tensor([0.7], dtype=torch.float64)
    with pytest.raises(ValueError, match="a second derivative was asked for"):
        torch.autograd.functional.hessian(lambda x: loss(REINFORCE(), x), at)
    p = at.sigmoid()
    found = torch.autograd.functional.hessian(lambda x: loss(Enumeration(), x), at)
    torch.testing.assert_close(found.squeeze(0), 0.4 * p * (1 - p) * (1 - 2 * p))


def test_second_derivatives_elsewhere_are_as_they_were():
    logits, weight = torch.zeros(5, 2, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    loss = REINFORCE()(Independent(Bernoulli(logits=logits), 1), lambda b: weight**3 * b.sum(-1)).sum()
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    (second,) = torch.autograd.grad(gradient, weight)
    torch.testing.assert_close(second, gradient.detach())  # 6 w against 3 w², at w = 2


def test_forward_mode_is_refused():
    with forward_ad.dual_level():
        logits = forward_ad.make_dual(torch.zeros(3, 2), torch.ones(3, 2))
        with pytest.raises(RuntimeError, match="forward-mode"):
            REINFORCE()(Independent(Bernoulli(logits=logits), 1), lambda b: b.sum(-1))


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap, torch.func.jacrev])
def test_function_transforms_are_refused_with_what_works(transform):
    def loss(logits):
        return REINFORCE()(Bernoulli(logits=logits, validate_args=False), lambda b: b).sum()

    with pytest.raises(RuntimeError, match=r"torch\.func\.grad, vmap.*batch axes of q in place of vmap"):
        transform(loss)(torch.zeros(3))


@pytest.mark.parametrize(
    "context", [torch.zeros(4), torch.zeros(3, 2), torch.zeros(2, 4, 2)], ids=lambda c: str(c.shape)
)
def test_a_context_that_is_not_one_of_the_batch_is_refused(context):
    with pytest.raises(ValueError, match=r"context must have the shape batch_shape .* = \(4,\) \+ \(features,\)"):
        REINFORCE(LearnedBaseline())(bernoulli(4, 3), lambda z: z.sum(-1), context)


@pytest.mark.parametrize("context", [torch.zeros(4, 2), torch.zeros(1, 2)], ids=lambda c: str(c.shape))
def test_a_context_that_broadcasts_is_taken(context):
    assert RELAX(surrogate())(bernoulli(4, 3), lambda z: z.sum(-1), context).shape == (4,)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_num_samples_is_checked_when_it_is_set_later(value):
    estimator = REBAR()
    with pytest.raises(ValueError, match="integer num_samples of at least 1"):
        estimator.num_samples = value
    estimator.num_samples = 3
    assert "num_samples=3" in repr(estimator)


def test_num_samples_that_the_baseline_cannot_do_with_are_refused_later():
    estimator = REINFORCE(LeaveOneOut(), num_samples=2)
    with pytest.raises(ValueError, match="LeaveOneOut needs num_samples of at least 2, got 1"):
        estimator.num_samples = 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_eta_that_is_not_finite_is_refused(value):
    for make in (REBAR, RelaxedREBAR):
        with pytest.raises(ValueError, match="needs a finite eta"):
            make(eta=value)


@pytest.mark.parametrize("make", [Concrete, REBAR, RELAX, RelaxedREBAR])
def test_the_temperature_can_be_set_at_any_time(make):
    estimator = make(temperature=1.0)
    estimator.temperature = 0.25
    assert estimator.temperature.item() == pytest.approx(0.25)
    assert estimator.log_temperature.exp().item() == pytest.approx(0.25)
    estimator.learn_temperature = False
    assert not estimator.log_temperature.requires_grad
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive, finite temperature"):
            estimator.temperature = wrong
    assert estimator.temperature.item() == pytest.approx(0.25)


@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical])
def test_concrete_is_validated_on_the_discrete_model(family):
    q = Independent(family(logits=torch.zeros(50, 2, 3)), 2 if family is Bernoulli else 1)
    estimator = Concrete().eval()
    with torch.no_grad():
        value = estimator(q, lambda z: (z - 0.5).square().mean((-1, -2)))
    torch.testing.assert_close(value, torch.full((50,), 0.25))
    with torch.no_grad():
        assert (estimator.train()(q, lambda z: (z - 0.5).square().mean((-1, -2))) < 0.25).all()


@pytest.mark.parametrize("make", [lambda: RELAX(surrogate()), lambda: RelaxedREBAR(surrogate())])
def test_other_sizes_after_prepare_are_refused_in_the_words_of_prepare(make):
    estimator = make()
    estimator.prepare(bernoulli(4, 3))
    with pytest.raises(ValueError, match="5 entries of z: make its first layer that wide"):
        estimator(bernoulli(4, 5), lambda z: z.sum(-1))
    with pytest.raises(ValueError, match="3 entries of z and the 2 of the context behind them"):
        estimator(bernoulli(4, 3), lambda z: z.sum(-1), torch.zeros(4, 2))
    with_context = make()
    with_context.prepare(bernoulli(4, 3), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="3 entries of z: make"):
        with_context(bernoulli(4, 3), lambda z: z.sum(-1))
    with pytest.raises(ValueError, match="3 entries of z and the 4 of the context"):
        with_context(bernoulli(4, 3), lambda z: z.sum(-1), torch.zeros(4, 4))


def test_a_state_of_another_width_before_prepare_is_refused_in_the_words_of_prepare():
    other, estimator = RELAX(surrogate()), RELAX(surrogate())
    other.prepare(bernoulli(4, 5))
    estimator.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="3 entries of z: make"):
        estimator.prepare(bernoulli(4, 3))


COUPLED = {
    "in-batch negatives": lambda z: (
        -(z @ torch.linspace(-2, 2, 48).sin().reshape(3, 16)).log_softmax(-2).diagonal(dim1=-2, dim2=-1)
    ),
    "distance from the batch mean": lambda z: (z - z.mean(-2, keepdim=True)).square().sum(-1),
    "the neighbour's latents": lambda z: (z * z.roll(1, -2)).sum(-1),
    "normalised over the batch": lambda z: z.sum(-1) / (1 + z.sum(-1).sum(-1, keepdim=True)),
}


@pytest.mark.parametrize("cost", COUPLED.values(), ids=COUPLED)
@pytest.mark.parametrize("make", [REINFORCE, REBAR, Enumeration, StochasticBackprop])
def test_costs_that_couple_the_batch_are_refused_once(make, cost):
    estimator, q = make(), bernoulli(16, 3)
    with pytest.raises(ValueError, match=r"couples the batch.*Independent\(q, 1\).*allow_coupled_costs"):
        estimator(q, cost)
    accepted = make()
    accepted.allow_coupled_costs = True
    assert accepted(q, cost).shape == (16,)


def test_coupled_costs_of_continuous_latents_and_of_samples_are_refused():
    q = Independent(Normal(torch.zeros(4, 2, requires_grad=True), 1.0), 1)
    for make in (Pathwise, lambda: LAX(surrogate())):
        with pytest.raises(ValueError, match="couples the batch"):
            make()(q, COUPLED["distance from the batch mean"])
    with pytest.raises(ValueError, match="couples the batch"):
        REINFORCE(num_samples=4)(bernoulli(1, 3), lambda z: z.sum(-1).logsumexp(0, keepdim=True).expand(4, 1))


def noisy(z):
    return z.sum(-1) + uniform(z.shape[:-1], (), dtype=z.dtype, device=z.device)


OWN = torch.Generator().manual_seed(0)


def random_elsewhere(z):
    return z.sum(-1) + torch.rand(z.shape[:-1], generator=OWN)


def nested(z):
    return REINFORCE()(Independent(Bernoulli(logits=z), 1), lambda b: (b * z).sum(-1))


UNCOUPLED = {
    "plain": lambda z: z.square().sum(-1),
    "noisy": noisy,
    "random elsewhere": random_elsewhere,
    "dropout": lambda z: nn.functional.dropout(z, 0.5).sum(-1),
    "nested": nested,
    "rejection sampling": lambda z: torch._standard_gamma(1 + z).sum(-1),
    "infinite": lambda z: z.sum(-1).log() * 0 + torch.where(z.sum(-1) > 1, torch.inf, 0.0),
}


@pytest.mark.parametrize("cost", UNCOUPLED.values(), ids=UNCOUPLED)
def test_costs_that_do_not_couple_the_batch_pass_and_no_noise_is_used_up(cost):
    estimator, plain = REINFORCE(), REINFORCE()
    plain.allow_coupled_costs = True
    torch.manual_seed(3)
    expected = plain(bernoulli(16, 3), cost)
    following = torch.rand(3)
    torch.manual_seed(3)
    found = estimator(bernoulli(16, 3), cost)
    if cost is not random_elsewhere:
        torch.testing.assert_close(found, expected, equal_nan=True)
    assert torch.equal(torch.rand(3), following)


def test_only_the_first_training_step_looks():
    calls = []

    def cost(z):
        calls.append(len(z))
        return z.sum(-1)

    estimator = REINFORCE()
    with torch.no_grad():
        estimator(bernoulli(4, 3), cost)
    assert len(calls) == 1
    for expected in (4, 5):
        estimator(bernoulli(4, 3), cost)
        assert len(calls) == expected


@pytest.mark.parametrize("make", [REINFORCE, REBAR, StochasticBackprop])
def test_batch_norm_in_the_cost_is_told_of_because_it_couples_the_batch(make):
    norm = nn.BatchNorm1d(3)

    def cost(z):
        return norm(z.reshape(-1, 3)).reshape(z.shape).sum(-1)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        make()(bernoulli(64, 3), cost)
    assert ["BatchNorm in training mode, which couples the batch" in str(w.message) for w in told] == [True]
    norm.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make()(bernoulli(64, 3), cost)


@pytest.mark.parametrize("make", [REINFORCE, REBAR, RELAX, LAX, Concrete, Enumeration, Pathwise, StochasticBackprop])
@pytest.mark.parametrize("q", [None, torch.zeros(4, 3), Bernoulli])
def test_what_is_no_distribution_is_named(make, q):
    with pytest.raises(TypeError, match=r"got (NoneType|Tensor|type)"):
        make()(q, lambda z: z.sum(-1))


def test_a_surrogate_is_sized_by_a_distribution_without_a_mean():
    logits = torch.zeros(4, 3, requires_grad=True)
    q = Independent(RelaxedBernoulli(torch.tensor(0.5), logits=logits), 1)
    estimator = LAX()
    estimator.prepare(q)
    estimator(q, lambda z: z.square().sum(-1)).sum().backward()
    assert bool(logits.grad.isfinite().all())
