"""Black-box and pathwise estimators take any distribution faithfully, or say why not."""

import pytest
import torch
from torch.distributions import (
    AffineTransform,
    Beta,
    Categorical,
    Dirichlet,
    Distribution,
    Exponential,
    ExpTransform,
    Gamma,
    Independent,
    MixtureSameFamily,
    Multinomial,
    Normal,
    OneHotCategoricalStraightThrough,
    Pareto,
    TanhTransform,
    TransformedDistribution,
    Uniform,
    Weibull,
    Wishart,
    constraints,
)

from lightning_estimators.baselines import LeaveOneOut
from lightning_estimators.distributions import distribution_parameters, rebuild, sample
from lightning_estimators.estimators import LAX, REINFORCE, Pathwise
from lightning_estimators.networks import Surrogate
from lightning_estimators.testing import BOUND

ROWS = 20_000
F64 = torch.float64


def reinforce():
    return REINFORCE(LeaveOneOut(), num_samples=2)


def lax():
    return LAX(Surrogate(hidden=[4], activation="tanh"))


def check(make, build, value, f, expected, dtype=F64):
    """Compare the mean gradient in one number with the exact one."""
    torch.manual_seed(0)
    a = torch.full((ROWS,), value, dtype=dtype, requires_grad=True)
    make()(build(a), f).sum().backward()
    error = a.grad.double().std() / ROWS**0.5
    assert abs(a.grad.double().mean() - expected) < BOUND * error + 1e-6 * abs(expected)


class Repeated(Normal):
    """A family of torch with an argument more."""

    def __init__(self, loc, scale, times=1):
        self.times = times
        super().__init__(loc, scale)

    def sample(self, sample_shape=()):
        return super().sample((self.times, *sample_shape)).mean(0)

    def log_prob(self, z):
        return Normal(self.loc, self.scale / self.times**0.5).log_prob(z)


class Shifted(Distribution):
    """A family from scratch, with a constant that is no parameter."""

    arg_constraints = {"loc": constraints.real}  # noqa: RUF012
    support = constraints.real

    def __init__(self, loc, by=0.0):
        self._loc, self.by = loc, by
        super().__init__(loc.shape, validate_args=False)

    @property
    def loc(self):
        return self._loc

    def sample(self, sample_shape=()):
        return self.loc.detach() + self.by + torch.randn_like(self.loc)

    def log_prob(self, z):
        return -((z - self.loc - self.by) ** 2) / 2


def mixture(a):
    logits = torch.stack([torch.zeros_like(a), a], -1)
    return MixtureSameFamily(
        Categorical(logits=logits), Normal(torch.tensor([0.0, 2.0], dtype=a.dtype) + 0 * logits, 1.0)
    )


def multinomial(a):
    return Multinomial(10, logits=torch.stack([a, 0 * a], -1))


def log_normal(a):
    return TransformedDistribution(Normal(a, torch.full_like(a, 0.5)), ExpTransform())


def scaled(a):
    return TransformedDistribution(Normal(torch.zeros_like(a), 1.0), AffineTransform(0.0, a))


def wishart(a):
    return Wishart(torch.tensor(4.0, dtype=F64), scale_tril=a[:, None, None] * torch.eye(2, dtype=F64))


P2 = torch.tensor(0.4, dtype=F64).sigmoid()
CASES = {
    "multinomial": (multinomial, 0.4, lambda z: z[..., 0], 10 * P2 * (1 - P2)),
    "subclass": (lambda a: Repeated(a, torch.ones_like(a), times=4), 0.5, torch.square, 1.0),
    "own": (lambda a: Shifted(a, by=3.0), 0.5, torch.square, 7.0),
    "mixture": (mixture, 0.4, lambda z: z, 2 * P2 * (1 - P2)),
    "independent mixture": (lambda a: Independent(mixture(a[:, None]), 1), 0.4, lambda z: z.sum(-1), 2 * P2 * (1 - P2)),
    "scaled": (scaled, 0.7, torch.square, 1.4),
    "log-normal": (log_normal, 0.3, lambda z: z, torch.tensor(0.425).exp()),
    "wishart": (wishart, 1.3, lambda z: z[..., 0, 0], 2 * 4 * 1.3),
    "weibull": (lambda a: Weibull(a, torch.full_like(a, 2.0)), 1.3, torch.square, 2.6),
}


@pytest.mark.filterwarnings("ignore:Singular sample")  # torch warns of every sample of a Wishart
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("make", [reinforce, Pathwise, lax])
def test_gradients(name, make):
    build, value, f, expected = CASES[name]
    q = build(torch.ones(2, dtype=F64))
    if make is not reinforce and not q.has_rsample:
        with pytest.raises(TypeError, match=r"needs a distribution with rsample.*Use REINFORCE"):
            make().check(q)
    elif not (make is not reinforce and name == "subclass"):  # whose rsample is not its sample
        check(make, build, value, f, float(expected))


def test_saturated_transforms_have_a_score():
    q = TransformedDistribution(Normal(torch.full((1000,), 9.0, requires_grad=True), 1.0), TanhTransform())
    loc = q.base_dist.loc
    (gradient,) = torch.autograd.grad(REINFORCE()(q, lambda z: (z > 0.9999999).float()).sum(), loc)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("make", [reinforce, lax])
@pytest.mark.parametrize(
    "build",
    [
        lambda a: Uniform(torch.zeros_like(a), a),
        lambda a: Independent(Uniform(0 * a, a), 1),
        lambda a: Pareto(a, torch.full_like(a, 4.0)),
        lambda a: TransformedDistribution(Exponential(torch.ones_like(a)), AffineTransform(a, 1.0)),
        lambda a: TransformedDistribution(Uniform(torch.zeros_like(a), 1.0), AffineTransform(0.0, a)),
        lambda a: TransformedDistribution(Normal(0 * a, 1.0), [ExpTransform(), AffineTransform(a, 1.0)]),
    ],
)
def test_supports_that_move_with_what_is_learned_are_refused(build, make):
    with pytest.raises(TypeError, match=r"support of q moves.*Use Pathwise"):
        make()(build(torch.ones(3, requires_grad=True)), lambda z: z)
    Pathwise().check(build(torch.ones(3, requires_grad=True)))


@pytest.mark.parametrize("make", [Pathwise, lax])
def test_straight_through_families_are_not_taken_for_unbiased(make):
    q = OneHotCategoricalStraightThrough(logits=torch.zeros(2, 3))
    for given in (q, Independent(q, 1)):
        with pytest.raises(TypeError, match=r"straight-through estimate, which is biased.*Concrete"):
            make().prepare(given)


def test_what_is_learned_and_is_no_parameter_is_refused():
    class Flow(torch.distributions.Transform):
        domain = codomain = constraints.real
        bijective = True

        def __init__(self, weight):
            super().__init__()
            self.weight = weight

        def _call(self, x):
            return self.weight * x

        def _inverse(self, y):
            return y / self.weight

        def log_abs_det_jacobian(self, x, y):
            return self.weight.log().expand(x.shape)

    weight = torch.tensor(2.0, requires_grad=True)
    q = TransformedDistribution(Normal(torch.zeros(5), torch.ones(5)), Flow(weight))
    with pytest.raises(TypeError, match=r"none of its parameters.*transforms.0.weight.*rebuild.register"):
        REINFORCE()(q, lambda z: z)
    Pathwise()(q, torch.square).sum().backward()
    assert weight.grad > 0


def test_a_class_that_keeps_something_worked_out_is_refused_or_says_how_it_is_rebuilt():
    class Doubled(Distribution):
        arg_constraints = {"loc": constraints.real}  # noqa: RUF012
        support = constraints.real

        def __init__(self, loc):
            self.loc, self.inner = loc, Normal(2 * loc, 1.0)
            super().__init__(loc.shape, validate_args=False)

        def sample(self, sample_shape=()):
            return self.inner.sample(sample_shape)

        def log_prob(self, z):
            return self.inner.log_prob(z)

    def build(a):
        return Doubled(a)

    with pytest.raises(TypeError, match=r"inner.loc.*rebuild.register"):
        REINFORCE()(build(torch.zeros(3, requires_grad=True)), lambda z: z)
    rebuild.register(Doubled, lambda q, parameters: Doubled(parameters["loc"]))
    check(reinforce, build, 0.3, lambda z: z, 2.0)


def test_a_class_without_parameters_is_told_how_to_name_them():
    class Nameless(Distribution):
        support = constraints.real

    with pytest.raises(TypeError, match=r"arg_constraints name.*Nameless.*distribution_parameters.register"):
        distribution_parameters(Nameless(torch.Size([2]), validate_args=False))


@pytest.mark.parametrize("make", [reinforce, Pathwise, lax])
def test_small_concentrations_in_single_precision(make):
    k = torch.tensor(0.01, dtype=F64)
    expected = -torch.log(torch.tensor(2.0)) * 2**-k
    check(make, lambda a: Gamma(a, torch.ones(())), 0.01, lambda z: (-z).exp(), float(expected), torch.float32)
    # E z² = (a + 1) / (2 (2 a + 1)) for two equal shapes, by the first of the two:
    build = lambda a: Dirichlet(torch.stack([a, torch.full_like(a, 0.02)], -1))  # noqa: E731
    a = torch.tensor(0.02, dtype=F64, requires_grad=True)
    total = a + 0.02
    (slope,) = torch.autograd.grad(a * (a + 1) / (total * (total + 1)), a)
    check(make, build, 0.02, lambda z: z[..., 0].square(), float(slope), torch.float32)
    check(make, lambda a: Beta(a, torch.full_like(a, 0.02)), 0.02, torch.square, float(slope), torch.float32)


def test_small_gammas_stay_inside_their_support():
    z = sample(Gamma(torch.full((1000,), 0.01), torch.ones(())))
    assert (z > 0).all()
