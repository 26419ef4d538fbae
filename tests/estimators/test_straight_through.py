"""Straight-through estimators: their algebra at fixed samples, what they are exact for, and what they are not."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Independent, OneHotCategorical, OneHotCategoricalStraightThrough

from lightning_estimators.distributions import probabilities, sample
from lightning_estimators.estimators import Concrete, Enumeration, GumbelRao, ReinMax, StraightThrough
from lightning_estimators.testing import BOUND

F64 = torch.float64
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
BITS = torch.tensor([0.4, -1.3, 2.0], dtype=F64)
CLASSES = torch.tensor([[0.3, 0.5, -0.2], [1.1, -0.4, 0.6]], dtype=F64)


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(F64)
    yield
    torch.set_default_dtype(torch.float32)


def bernoulli(logits):
    return Independent(Bernoulli(logits=logits), 1)


def categorical(logits):
    return Independent(OneHotCategorical(logits=logits), 1)


KINDS = {"bernoulli": (bernoulli, BITS), "categorical": (categorical, CLASSES)}


def features(z, event):
    return z.flatten(-event) if event > 1 else z


def wavy(event):
    def f(z):
        z = features(z, event)
        weights = torch.linspace(-1, 2, z.shape[-1], dtype=z.dtype)
        return torch.sin(2 * (z * weights).sum(-1)) + (z * weights.flip(-1)).sum(-1).pow(3)

    return f


def linear(event):
    return lambda z: (features(z, event) * torch.linspace(-1, 2, features(z, event).shape[-1], dtype=z.dtype)).sum(-1)


def quadratic_in_each(event):
    """Quadratic in each variable given the others, and of degree 2 * variables in all of them."""

    def f(z):
        z = z if event > 1 else z.unsqueeze(-1)
        weights = torch.linspace(-1, 2, z.shape[-1], dtype=z.dtype)
        square = (z * weights).sum(-1).square() + (z * weights.cos()).sum(-1)
        return (0.5 + square).prod(-1)

    return f


def support(kind):
    """Every point of the support, and its probability."""
    make, logits = KINDS[kind]
    points = torch.cartesian_prod(*[torch.arange(2 if kind == "bernoulli" else 3)] * logits.shape[0])
    points = points.to(F64) if kind == "bernoulli" else torch.nn.functional.one_hot(points, 3).to(F64)
    return points, make(logits).log_prob(points).exp()


def at(estimator, kind, z, f, monkeypatch, logits=None):
    """Gradient in the logits at given samples."""
    make, start = KINDS[kind]
    start = start if logits is None else logits
    monkeypatch.setattr("lightning_estimators.estimators.straight_through_estimator.sample", lambda _: z.unsqueeze(0))
    leaf = start.expand(len(z), *start.shape).clone().requires_grad_()
    estimator.allow_coupled_costs = True
    value = estimator(make(leaf), f)
    assert torch.allclose(value, f(z), **CLOSE)
    return torch.autograd.grad(value.sum(), leaf)[0]


def slopes(f, z):
    leaf = z.clone().requires_grad_()
    return torch.autograd.grad(f(leaf).sum(), leaf)[0]


def exact(kind, f):
    make, start = KINDS[kind]
    leaf = start.clone().requires_grad_()
    return torch.autograd.grad(Enumeration()(make(leaf), f), leaf)[0]


def test_straight_through_is_that_of_torch(monkeypatch):
    z, _ = support("categorical")
    found = at(StraightThrough(), "categorical", z, wavy(2), monkeypatch)
    monkeypatch.setattr(OneHotCategoricalStraightThrough, "sample", lambda *_: z)
    leaf = CLASSES.expand_as(z).clone().requires_grad_()
    (expected,) = torch.autograd.grad(wavy(2)(OneHotCategoricalStraightThrough(logits=leaf).rsample()).sum(), leaf)
    assert torch.allclose(found, expected, **CLOSE)
    assert found.abs().max() > 0.1


def test_straight_through_of_bits(monkeypatch):
    b, _ = support("bernoulli")
    p = BITS.sigmoid()
    found = at(StraightThrough(), "bernoulli", b, wavy(1), monkeypatch)
    assert torch.allclose(found, p * (1 - p) * slopes(wavy(1), b), **CLOSE)


def published_reinmax(logits, z, slope, temperature):
    """Algorithm 2 of Liu et al. (2023): what backward brings to the logits."""
    leaf = logits.expand_as(z).clone().requires_grad_()
    pi_0 = leaf.softmax(-1)
    pi_1 = (z + (leaf / temperature).softmax(-1)) / 2
    pi_1 = ((pi_1.log() - leaf).detach() + leaf).softmax(-1)
    pi_2 = 2 * pi_1 - pi_0 / 2
    return torch.autograd.grad(((pi_2 - pi_2.detach() + z) * slope).sum(), leaf)[0]


@pytest.mark.parametrize("temperature", [1.0, 1.3, 0.6])
def test_reinmax_is_the_published_algorithm(temperature, monkeypatch):
    z, _ = support("categorical")
    found = at(ReinMax(temperature), "categorical", z, wavy(2), monkeypatch)
    assert torch.allclose(found, published_reinmax(CLASSES, z, slopes(wavy(2), z), temperature), **CLOSE)


@pytest.mark.parametrize("temperature", [1.0, 1.3, 0.6])
def test_reinmax_of_a_bit_is_that_of_two_classes(temperature, monkeypatch):
    b, _ = support("bernoulli")
    slope = slopes(wavy(1), b)
    two = torch.stack([BITS, torch.zeros_like(BITS)], -1)
    pairs, of_pairs = torch.stack([b, 1 - b], -1), torch.stack([slope, torch.zeros_like(slope)], -1)
    found = at(ReinMax(temperature), "bernoulli", b, wavy(1), monkeypatch)
    assert torch.allclose(found, published_reinmax(two, pairs, of_pairs, temperature)[..., 0], **CLOSE)
    if temperature == 1:
        assert torch.allclose(found, (b - BITS.sigmoid()).abs() / 2 * slope, **CLOSE)


def test_reinmax_at_temperature_1_is_the_zero_temperature_limit_of_gumbel_rao(monkeypatch):
    """Shekhovtsov (2023): half of J(π) f' + (z - π) (z - π)ᵀ f'."""
    z, _ = support("categorical")
    pi, slope = CLASSES.softmax(-1), slopes(wavy(2), z)
    of_softmax = pi * (slope - (pi * slope).sum(-1, keepdim=True))
    of_sample = (z - pi) * ((z - pi) * slope).sum(-1, keepdim=True)
    found = at(ReinMax(), "categorical", z, wavy(2), monkeypatch)
    assert torch.allclose(found, (of_softmax + of_sample) / 2, **CLOSE)
    torch.manual_seed(0)
    cold = at(GumbelRao(0.05, num_relaxations=500_000), "categorical", z[:1], wavy(2), monkeypatch)
    assert torch.allclose(cold, found[:1], atol=0.03 * found.abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_exact_and_what_is_biased(kind, monkeypatch):
    """The mean over the whole support, exactly: straight-through of linear f, ReinMax of quadratic ones."""
    z, weight = support(kind)
    event = KINDS[kind][1].ndim

    def bias(estimator, f):
        g = at(estimator, kind, z, f, monkeypatch)
        return ((weight.reshape(-1, *[1] * event) * g).sum(0) - exact(kind, f)).abs().max().item()

    assert bias(StraightThrough(), linear(event)) < 1e-12
    assert bias(ReinMax(), linear(event)) < 1e-12
    assert bias(ReinMax(), quadratic_in_each(event)) < 1e-12
    assert bias(StraightThrough(), quadratic_in_each(event)) > 0.01
    assert bias(ReinMax(1.3), quadratic_in_each(event)) > 0.01
    assert bias(ReinMax(), wavy(event)) > 0.01


def test_gumbel_rao_at_fixed_noise(monkeypatch):
    """Conditional Gumbels as in Maddison's and Paulus et al.'s papers: exponentials E, partition function Z."""
    draws, temperature, z = 5, 0.7, support("categorical")[0]
    u = torch.rand(draws, 1, *z.shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("lightning_estimators.estimators.relaxation.uniform", lambda batch, event, **_: u)
    found = at(GumbelRao(temperature, num_relaxations=draws), "categorical", z, wavy(2), monkeypatch)
    e, slope = -u.squeeze(1).log(), slopes(wavy(2), z)
    partition = CLASSES.exp().sum(-1, keepdim=True)
    chosen = (e * z).sum(-1, keepdim=True)
    relaxed = torch.where(z > 0, partition.log() - e.log(), -(e / CLASSES.exp() + chosen / partition).log())
    assert torch.equal(relaxed.argmax(-1), z.argmax(-1).expand(draws, *z.shape[:-1]))
    expected = torch.zeros_like(z)
    for soft in (relaxed / temperature).softmax(-1):
        expected += soft * (slope - (soft * slope).sum(-1, keepdim=True)) / temperature / draws
    assert torch.allclose(found, expected, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_gumbel_rao_averages_straight_through_slopes_of_the_same_sample(kind, monkeypatch):
    """By brute force: relaxations are drawn until they have the sample asked for."""
    logits = KINDS[kind][1]
    event, temperature, n = logits.ndim, 0.5, 200_000
    f, z = wavy(event), support(kind)[0][1:2]
    torch.manual_seed(0)
    noise = torch.distributions.Gumbel(torch.tensor(0.0, dtype=F64), torch.tensor(1.0, dtype=F64))
    relaxed = logits + noise.sample((n, *logits.shape))
    if kind == "bernoulli":
        relaxed = relaxed - noise.sample((n, *logits.shape))
        fits, soft = (relaxed > 0) == (z > 0), (relaxed / temperature).sigmoid()
        terms = soft * (1 - soft) * slopes(f, z) / temperature
    else:
        fits = (relaxed.argmax(-1) == z.argmax(-1)).unsqueeze(-1).expand_as(relaxed)
        soft = (relaxed / temperature).softmax(-1)
        terms = soft * (slopes(f, z) - (soft * slopes(f, z)).sum(-1, keepdim=True)) / temperature
    count = fits.sum(0)  # variables are independent: each may be conditioned by itself
    mean = (terms * fits).sum(0) / count
    error = (((terms - mean) * fits).square().sum(0) / count.square()).sqrt()
    found = at(GumbelRao(temperature, num_relaxations=100_000), kind, z, f, monkeypatch)[0]
    assert ((found - mean).abs() < BOUND * 2 * error).all()
    assert mean.abs().max() > 10 * error.max()


@pytest.mark.parametrize("kind", KINDS)
def test_gumbel_rao_has_the_mean_of_the_straight_through_gumbel_softmax_and_less_variance(kind):
    make, logits = KINDS[kind]
    found = []
    for estimator in (Concrete(0.3, straight_through=True), GumbelRao(0.3, num_relaxations=20)):
        torch.manual_seed(0)
        leaf = logits.expand(20_000, *logits.shape).clone().requires_grad_()
        (g,) = torch.autograd.grad(estimator(make(leaf), wavy(logits.ndim)).sum(), leaf)
        found.append((g.mean(0), g.var(0)))
    (first, spread), (second, less) = found
    assert ((first - second).abs() < BOUND * ((spread + less) / 20_000).sqrt()).all()
    assert less.sum() < 0.7 * spread.sum()


ESTIMATORS = {
    "StraightThrough": StraightThrough,
    "ReinMax": ReinMax,
    "ReinMax/1.3": lambda: ReinMax(1.3),
    "GumbelRao": lambda: GumbelRao(num_relaxations=3),
}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("masked", [-math.inf, -1e9])
@pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)
def test_a_masked_class_is_as_good_as_none(make, masked, dtype, monkeypatch):
    """The same gradient, at the same noise, as without the class."""
    monkeypatch.setattr("lightning_estimators.estimators.base.refuse_coupled_costs", lambda *_, **__: None)
    generator, weights = torch.Generator().manual_seed(0), torch.tensor([1.0, -2.0, 0.5, 7.0], dtype=dtype)
    noise = torch.rand(3, 1, 50, 2, 4, generator=generator, dtype=dtype)
    choice = torch.rand(1, 50, 2, 1, generator=generator, dtype=dtype)
    gradients = []
    for classes in (3, 4):
        monkeypatch.setattr(
            "lightning_estimators.estimators.relaxation.uniform", lambda *_, c=classes, **__: noise[..., :c]
        )
        monkeypatch.setattr("lightning_estimators.distributions.sampling.uniform", lambda *_, **__: choice)
        logits = torch.zeros(50, 2, 4, dtype=dtype)
        logits[..., :3], logits[..., 3] = CLASSES, masked
        logits = logits[..., :classes].requires_grad_()

        def f(z, c=classes):
            return torch.sin((z * weights[:c]).sum((-1, -2)))

        gradients.append(torch.autograd.grad(make()(categorical(logits), f).sum(), logits)[0])
    assert torch.equal(gradients[1][..., 3], torch.zeros(50, 2, dtype=dtype))
    assert torch.allclose(gradients[0], gradients[1][..., :3], rtol=1e-5, atol=1e-6)
    assert gradients[0].abs().max() > 0.1


@pytest.mark.parametrize("limit", [40.0, 1e9, math.inf])
@pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)
def test_decided_variables_have_no_gradient_and_others_theirs(make, limit):
    torch.manual_seed(0)
    logits = torch.tensor([[0.3, limit, -limit]], dtype=torch.float32).repeat(50, 1).requires_grad_()
    make()(bernoulli(logits), lambda b: b.sum(-1).square()).sum().backward()
    assert logits.grad[:, 1:].abs().max() < 1e-12
    assert (logits.grad[:, 0] > 0).all()
    classes = torch.tensor([[0.3, -limit, 0.1], [-limit, 0.0, -limit]], dtype=torch.float32)
    classes = classes.repeat(50, 1, 1).requires_grad_()
    make()(categorical(classes), lambda z: (z * torch.arange(3)).sum((-1, -2)).square()).sum().backward()
    assert classes.grad[:, 1].abs().max() < 1e-12
    assert classes.grad[:, 0, 1].abs().max() < 1e-12
    assert (classes.grad[:, 0, 2] > 0).all()


def test_probabilities_at_the_edge():
    """Given as probabilities, of which samples of a certain outcome tell what the slope there tells."""
    p = torch.tensor([0.0, 0.5, 1.0, 1e-20], requires_grad=True)
    gain = torch.tensor([-3.0, 2.0, 5.0, 1.0])
    StraightThrough()(Independent(Bernoulli(probs=p), 1), lambda b: (b * gain).sum(-1)).backward()
    assert torch.allclose(p.grad, gain)
    (gradient,) = torch.autograd.grad(ReinMax()(Independent(Bernoulli(probs=p), 1), lambda b: (b * gain).sum(-1)), p)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)
def test_f_sees_nothing_but_samples(make):
    seen = []

    def f(z):
        seen.append(z.detach())
        return z.square().sum(-1)

    q = bernoulli(BITS.repeat(100, 1).requires_grad_())
    make()(q, f).sum().backward()
    assert all(torch.equal(z, z.round()) for z in seen)


def test_samples_are_those_of_the_distribution():
    torch.manual_seed(0)
    z = sample(categorical(CLASSES.repeat(50_000, 1, 1)))
    p = probabilities(categorical(CLASSES))
    assert ((z.mean(0) - p).abs() < BOUND * (p * (1 - p) / 50_000).sqrt()).all()


def test_misuse_is_refused_when_built():
    with pytest.raises(ValueError, match="ReinMax needs a positive, finite temperature, got 0"):
        ReinMax(0.0)
    with pytest.raises(ValueError, match="GumbelRao needs num_relaxations of at least 1, got 0"):
        GumbelRao(num_relaxations=0)
