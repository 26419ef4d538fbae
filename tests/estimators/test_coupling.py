"""Samples that depend on one another: each keeps its distribution, and errors cancel."""

import math
import warnings
from functools import partial

import pytest
import torch
from scipy import stats
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Cauchy,
    Dirichlet,
    Exponential,
    Gamma,
    Gumbel,
    HalfNormal,
    Independent,
    Kumaraswamy,
    Laplace,
    LogNormal,
    MultivariateNormal,
    Normal,
    Poisson,
    StudentT,
    TransformedDistribution,
    Uniform,
    Weibull,
)
from torch.distributions.transforms import StickBreakingTransform
from torch.utils.checkpoint import checkpoint

from lightning_estimators.baselines import LeaveOneOut, NoBaseline
from lightning_estimators.distributions import Delta, can_be_coupled, reparameterized_sample, sample
from lightning_estimators.estimators import (
    LAX,
    REBAR,
    REINFORCE,
    RELAX,
    Estimate,
    GeneralizedReparameterization,
    Pathwise,
    RelaxedREBAR,
    StochasticBackprop,
)
from lightning_estimators.noise import CommonNoise, coupled_samples, independent_samples, is_coupled, uniform
from lightning_estimators.testing import ExactExpectation, Report, nested_moments
from lightning_estimators.testing.coupling import check_coupling, with_coupling
from lightning_estimators.testing.learning import check_variance_gradient

from .cases import small_baseline, small_surrogate

F64, CPU = torch.float64, torch.device("cpu")
COUPLINGS = {"antithetic": 2, "stratified": 4}


def draw(*batch, event=(), dtype=F64):
    return uniform(batch, event, dtype=dtype, device=CPU)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(("coupling", "samples"), [("antithetic", 2), ("stratified", 2), ("stratified", 3)])
def test_every_sample_is_uniform(coupling, samples, dtype):
    torch.manual_seed(0)
    with coupled_samples(coupling, (samples, 10_000)):
        u = draw(samples, 10_000, event=(2,), dtype=dtype)
    assert u.dtype == dtype
    assert u.shape == (samples, 10_000, 2)
    for k in range(samples):
        for column in u[k].T:
            assert stats.kstest(column.numpy(), "uniform").pvalue > 1e-3  # fixed seed
        assert abs(torch.corrcoef(u[k].T)[0, 1]) < 0.04
    if coupling == "antithetic":
        torch.testing.assert_close(u.sum(0), torch.ones_like(u[0]))
    else:
        strata = (u * samples).floor().sort(0).values
        assert torch.equal(strata, torch.arange(samples, dtype=dtype)[:, None, None].expand_as(u))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("end", ["first", "last"])
def test_noise_is_strictly_inside_also_where_the_generator_answers_its_least_and_its_greatest(
    monkeypatch, coupling, dtype, end
):
    value = 0.0 if end == "first" else 1 - torch.finfo(dtype).eps / 2
    monkeypatch.setattr(torch, "rand", lambda shape, **o: torch.full(shape, value, dtype=o["dtype"]))
    with coupled_samples(coupling, (COUPLINGS[coupling],)):
        u = draw(COUPLINGS[coupling], dtype=dtype)
    assert (u > 0).all()
    assert (u < 1).all()
    assert (u.log() - torch.log1p(-u)).isfinite().all()
    assert (-u.log()).log().isfinite().all()
    assert Normal(torch.zeros((), dtype=dtype), 1.0).icdf(u).isfinite().all()


def test_noise_of_another_batch_shape_and_that_of_the_cost_is_independent():
    with coupled_samples("antithetic", (2, 5)):
        one, other = draw(2, 5)
        assert torch.equal(one, 1 - other)
        for other_shape in ((2, 4), (1, 5), (5,), (2, 5, 1)):
            u = draw(*other_shape)
            assert u.shape == other_shape
            assert not torch.isclose(u[0], 1 - u[-1]).any()
        nested = draw(3, 2, 5)
        assert nested.unique().numel() == 30
        assert not torch.isclose(nested[:, 0], 1 - nested[:, 1]).any()
        with independent_samples():
            inside = draw(2, 5)
            assert not is_coupled()
        assert not torch.isclose(inside[0], 1 - inside[1]).any()
        assert is_coupled()
    assert not is_coupled()


def test_coupled_noise_is_replayed_along_a_new_axis():
    noise = CommonNoise(CPU)
    with coupled_samples("stratified", (3, 5)):
        once = draw(3, 5, event=(2,))
    after = draw(4)
    with noise.replay(new_axis=1), coupled_samples("stratified", (3, 7, 5)):
        again = draw(3, 7, 5, event=(2,))
    assert torch.equal(again, once.unsqueeze(1).expand(3, 7, 5, 2))
    assert torch.equal(draw(4), after)  # as many numbers were taken from the generator


def leaf(*shape, value=0.7):
    return torch.full(shape, value, dtype=F64, requires_grad=True)


ONE = leaf(1)
COUPLED = {
    "Normal": lambda p: Normal(p, 1 + p),
    "Laplace": lambda p: Laplace(p, 1 + p),
    "Exponential": Exponential,
    "Cauchy": lambda p: Cauchy(p, p),
    "Gumbel": lambda p: Gumbel(p, p),
    "HalfNormal": HalfNormal,
    "Uniform": lambda p: Uniform(-p.detach(), 1.0),
    "LogNormal": lambda p: LogNormal(p, p),
    "Weibull": lambda p: Weibull(p, 1 + p),
    "Kumaraswamy": lambda p: Kumaraswamy(p, 1 + p),
}


@pytest.mark.parametrize("family", COUPLED)
def test_samples_by_the_inverse_distribution_function_have_the_distribution(family):
    torch.manual_seed(0)
    q = COUPLED[family](leaf(4, 2000, 1))
    independent = q.sample()
    with coupled_samples("stratified", (4, 2000)):
        z = sample(Independent(q, 1))
    assert z.shape == (4, 2000, 1)
    assert not z.requires_grad
    assert stats.ks_2samp(z.flatten().numpy(), independent.flatten().numpy()).pvalue > 1e-3
    assert stats.ks_2samp(z[1].flatten().numpy(), independent.flatten().numpy()).pvalue > 1e-3


def test_multivariate_normal_and_transformed_vectors():
    torch.manual_seed(0)
    factor = torch.tensor([[1.0, 0.0], [-2.0, 0.5]], dtype=F64)
    loc = torch.tensor([3.0, -1.0], dtype=F64)
    q = MultivariateNormal(loc.expand(2, 20_000, 2), scale_tril=factor)
    with coupled_samples("antithetic", (2, 20_000)):
        z = sample(q)
    with coupled_samples("antithetic", (2, 5)):
        corners = sample(TransformedDistribution(Normal(loc.expand(2, 5, 2), 1.0), StickBreakingTransform()))
    torch.testing.assert_close(z.mean(0), loc.expand(20_000, 2))
    torch.testing.assert_close(torch.cov(z[1].T), factor @ factor.T, rtol=0.05, atol=0.05)
    assert corners.shape == (2, 5, 3)
    torch.testing.assert_close(corners.sum(-1), torch.ones(2, 5, dtype=F64))


@pytest.mark.parametrize("family", ["Normal", "Laplace", "Exponential", "LogNormal", "Weibull", "Gumbel"])
def test_reparameterized_samples_carry_the_derivative_of_the_expectation(family):
    """Of z², by pathwise derivatives of strata, which cover the distribution, against the closed second moment."""
    torch.manual_seed(0)
    p = leaf(2000)
    expand = p.expand(64, 2000)
    with coupled_samples("stratified", (64, 2000)):
        z = reparameterized_sample(COUPLED[family](expand))
    (found,) = torch.autograd.grad(z.square().mean(0).sum(), p)
    q = COUPLED[family](p)
    (exact,) = torch.autograd.grad((q.variance + q.mean.square()).sum(), p)
    error = (found - exact).mean().abs() / (found.std() / math.sqrt(2000))
    assert error < 4.5, f"{error:.1f} standard errors"


REFUSED = {
    "Gamma": lambda: Gamma(ONE, ONE),
    "Beta": lambda: Beta(ONE, ONE),
    "Dirichlet": lambda: Dirichlet(leaf(1, 3)),
    "StudentT": lambda: StudentT(ONE),
    "Poisson": lambda: Poisson(ONE),
}


@pytest.mark.parametrize("family", REFUSED)
def test_families_without_an_inverse_distribution_function_are_refused_by_name(family):
    q = REFUSED[family]()
    assert not can_be_coupled(q)
    kinds = [REINFORCE, LAX, Pathwise] if q.has_rsample else [REINFORCE]
    if family != "StudentT":
        kinds.append(StochasticBackprop)
    if family in ("Gamma", "Beta"):
        kinds.append(GeneralizedReparameterization)
    for kind in kinds:
        estimator = with_coupling(kind, "antithetic", 2)
        with pytest.raises(TypeError, match=f"samples of {family} cannot be coupled.*icdf"):
            estimator.prepare(q)
        with pytest.raises(TypeError, match=f"samples of {family} cannot be coupled.*icdf"):
            estimator(q, lambda z: z if z.ndim == 2 else z.sum(-1))


@pytest.mark.parametrize("family", REFUSED)
def test_they_are_never_drawn_independently_in_silence(family):
    with coupled_samples("antithetic", (1,)), pytest.raises(TypeError, match="cannot be coupled"):
        sample(REFUSED[family]())


def test_an_index_and_a_point_mass_can_be_coupled():
    logits = torch.zeros(5, 4, requires_grad=True)
    StochasticBackprop(num_samples=2, coupling="antithetic")(Categorical(logits=logits), lambda i: i.float()).sum()
    value = torch.ones(5, requires_grad=True)
    StochasticBackprop(num_samples=2, coupling="antithetic")(Delta(value), torch.square).sum().backward()
    assert torch.equal(value.grad, torch.full((5,), 2.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 3, "coupling": "antithetic"}, "a pair of samples.*num_samples=2, got 3.*stratified"),
        ({"num_samples": 1, "coupling": "antithetic"}, "a pair of samples.*num_samples=2, got 1"),
        ({"num_samples": 1, "coupling": "stratified"}, "num_samples of at least 2, got 1"),
        ({"num_samples": 2, "coupling": "paired"}, "among independent, antithetic, stratified; got 'paired'"),
    ],
)
@pytest.mark.parametrize("kind", [REINFORCE, REBAR, Pathwise, StochasticBackprop])
def test_settings_that_do_not_fit_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)


def test_they_are_refused_later_too_and_leave_the_estimator_as_it_was():
    estimator = REBAR(num_samples=2, coupling="antithetic")
    with pytest.raises(ValueError, match="num_samples=2, got 3"):
        estimator.num_samples = 3
    estimator.coupling = "stratified"
    estimator.num_samples = 3
    with pytest.raises(ValueError, match="num_samples=2, got 3"):
        estimator.coupling = "antithetic"
    assert (estimator.num_samples, estimator.coupling) == (3, "stratified")
    assert "num_samples=3, coupling='stratified'" in repr(estimator)


class ComparesPairs(REINFORCE):
    """Leaves one out, and forgets to say that samples must be independent."""

    def __init__(self, num_samples=2):
        super().__init__(_Forgetful(), num_samples)


class _Forgetful(LeaveOneOut):
    needs_independent_samples = False


class Declares(ComparesPairs):
    needs_independent_samples = True


class NeverRefuses(Declares):
    def _check_coupling(self, value, num_samples):
        pass


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_leave_one_out_needs_independent_samples(coupling):
    for make in (partial(REINFORCE, LeaveOneOut(), 2), Declares):
        with pytest.raises(ValueError, match=r"(LeaveOneOut|Declares) compares samples.*independent"):
            with_coupling(make, coupling, COUPLINGS[coupling])
    with pytest.raises(ValueError, match="LeaveOneOut compares samples"):
        REINFORCE(LeaveOneOut(), num_samples=2, coupling=coupling)


def test_the_conformance_suite_finds_a_plug_in_that_forgets_to_say_so():
    with pytest.raises(AssertionError, match=r"^coupling: Bernoulli, one layer, antithetic: .*\|z\| ="):
        check_coupling(ComparesPairs, Report())
    with pytest.raises(AssertionError, match=r"^coupling: NeverRefuses: .*is not refused"):
        check_coupling(NeverRefuses, Report())


ANTITHETIC = {
    "REINFORCE": REINFORCE,
    "REINFORCE/learned": lambda: REINFORCE(small_baseline()),
    "REBAR": REBAR,
    "RELAX": lambda: RELAX(small_surrogate()),
    "RelaxedREBAR": lambda: RelaxedREBAR(small_surrogate()),
    "StochasticBackprop": StochasticBackprop,
}


@pytest.mark.parametrize("inner", ANTITHETIC)
def test_antithetic_pairs_nest(inner):
    """Around and inside: the conformance suite nests stratified samples, and antithetic ones alone."""
    problem = ExactExpectation(Bernoulli, layers=2)
    outer = "StochasticBackprop" if inner != "StochasticBackprop" else "REBAR"
    factories = [partial(with_coupling, ANTITHETIC[name], "antithetic", 2) for name in (outer, inner)]
    Report().unbiased("nested", f"{inner} in {outer}", nested_moments(problem, factories, samples=20_000))


def test_the_noise_of_a_nested_estimator_is_independent_across_the_samples_around_it():
    seen = []

    def inner_cost(c):
        seen.append(c.detach())
        return c.sum(-1)

    def cost(b):
        logits = torch.zeros(*b.shape[:-1], 64) + 0 * b.sum(-1, keepdim=True)
        return inner(Independent(Bernoulli(logits=logits), 1), inner_cost)

    inner = StochasticBackprop(num_samples=2, coupling="antithetic")
    outer = REINFORCE(NoBaseline(), num_samples=2, coupling="antithetic")
    inner.allow_coupled_costs = outer.allow_coupled_costs = True  # they are not looked for, which draws more
    outer(Independent(Bernoulli(logits=torch.zeros(3, 1, requires_grad=True)), 1), cost).sum().backward()
    first = seen[0]  # (inner samples, outer samples, batch, 64)
    assert first.shape == (2, 2, 3, 64)
    assert torch.equal(first[0], 1 - first[1])  # u < 1/2 exactly where 1 - u is not
    same = (first[:, 0] == first[:, 1]).float().mean()
    assert 0.3 < same < 0.7  # of 384


def decoder(seed, variables, hidden=16):
    """Return a cost like that of a small decoder: a sum of softplus units of the latents."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(variables, hidden, generator=generator, dtype=F64) / math.sqrt(variables)
    second = torch.randn(hidden, generator=generator, dtype=F64)
    return lambda z: (torch.nn.functional.softplus(4 * (z - 0.5) @ first) * second).sum(-1)


def divided_by(f, variables, num_samples, coupling, batch=4000):
    """Return by what several samples divide the variance of the exact rule for Bernoullis with logits from -2 to 2."""
    found = []
    for settings in ({}, {"num_samples": num_samples, "coupling": coupling}):
        torch.manual_seed(0)
        logits = torch.linspace(-2, 2, variables, dtype=F64).expand(batch, variables).clone().requires_grad_()
        estimator = StochasticBackprop(**settings)
        (gradient,) = torch.autograd.grad(estimator(Independent(Bernoulli(logits=logits), 1), f).sum(), logits)
        found.append(gradient.var(0).sum().item())
    return found[0] / found[1]


@pytest.mark.parametrize("variables", [8, 32])
def test_two_antithetic_samples_divide_the_variance_by_three_and_four_stratified_ones_by_twelve(variables):
    """Independent samples divide it by their number. Measured: 3.2 and 11.0 for 8 variables, 3.4 and 12.9 for 32."""
    f = decoder(0, variables)
    assert divided_by(f, variables, 2, "independent") == pytest.approx(2, rel=0.05)
    assert divided_by(f, variables, 4, "independent") == pytest.approx(4, rel=0.05)
    assert 3.0 < divided_by(f, variables, 2, "antithetic") < 3.7
    assert 10.0 < divided_by(f, variables, 4, "stratified") < 14.0


LEARNED = {
    "REBAR": REBAR,
    "RELAX": lambda **settings: RELAX(small_surrogate(), **settings),
    "RelaxedREBAR": lambda **settings: RelaxedREBAR(small_surrogate(), **settings),
    "LAX": lambda **settings: LAX(small_surrogate(), **settings),
}


class SharesSingleVariances(REBAR):
    """Takes for the variance of the average what it is for independent samples."""

    def estimate(self, q, leaves, f, context):
        estimate = super().estimate(q, leaves, f, context)
        return Estimate(estimate.value, estimate.gradients, estimate.surrogate_loss.mean(0) / self.num_samples)


def test_own_parameters_learn_the_variance_of_the_average():
    """The conformance suite compares the gradients with differences of the measured variance, noise by noise."""
    with pytest.raises(AssertionError, match=r"variance gradient: Bernoulli.*derivative of the variance"):
        check_variance_gradient(partial(with_coupling, SharesSingleVariances, "antithetic", 2), Report())
    for make in LEARNED.values():
        check_variance_gradient(partial(make, num_samples=3, coupling="stratified"), Report())


@pytest.mark.parametrize("at", [0.0, 1.0, 1e-30])
def test_own_parameters_stay_finite_where_probabilities_are_as_good_as_certain(at):
    probs = torch.tensor([[at, 0.3]], dtype=F64, requires_grad=True)
    estimator = REBAR(num_samples=2, coupling="antithetic").double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is told of what never happens
        estimator(Independent(Bernoulli(probs=probs), 1), lambda z: (z - 0.3).pow(3).sum(-1)).sum().backward()
    assert probs.grad.isfinite().all()
    assert all(p.grad.isfinite() and p.grad != 0 for p in estimator.parameters())


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_activation_checkpointing_repeats_the_noise(name, coupling):
    found = []
    for wrap in (lambda f, *a: f(*a), partial(checkpoint, use_reentrant=False)):
        torch.manual_seed(0)
        estimator = LEARNED[name](num_samples=COUPLINGS[coupling], coupling=coupling)
        logits = torch.linspace(-1, 1, 6).reshape(3, 2).requires_grad_()
        weight = torch.ones((), requires_grad=True)

        def cost(z, weight=weight, wrap=wrap):
            return wrap(lambda z: torch.sin(3 * weight * z).sum(-1), z)

        def loss(logits, estimator=estimator, cost=cost):
            q = Normal(logits, 1.0) if isinstance(estimator, LAX) else Bernoulli(logits=logits)
            return estimator(Independent(q, 1), cost).sum()

        loss(logits)  # sizes the surrogate
        estimator.zero_grad()
        torch.manual_seed(1)
        wrap(loss, logits).backward()
        found.append([logits.grad, weight.grad, *(p.grad for p in estimator.parameters())])
    torch.testing.assert_close(*found)


def test_validation_draws_coupled_samples_too():
    estimator = StochasticBackprop(num_samples=4, coupling="stratified")
    q = Independent(Bernoulli(logits=torch.zeros(7, 100)), 1)
    with torch.no_grad():
        value = estimator(q, lambda z: z.sum(-1))
    assert torch.equal(value, torch.full((7,), 50.0))  # of every coordinate exactly two of four samples are 1
