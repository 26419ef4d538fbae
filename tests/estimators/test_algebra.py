"""Every estimator at a fixed sample against the papers' formulas, written out anew, in float64."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, OneHotCategorical

from lightning_estimators.baselines import LearnedBaseline, LeaveOneOut, MovingAverage, NoBaseline
from lightning_estimators.estimators import (
    REBAR,
    REINFORCE,
    RELAX,
    Concrete,
    Enumeration,
    MuProp,
    RelaxedREBAR,
    StochasticBackprop,
)
from lightning_estimators.networks import Surrogate

B, D, K = 4, 3, 3
UPSTREAM = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def fix_noise(monkeypatch):
    """Let the package draw given tensors in order, and check that it draws no others."""
    queue = []

    def uniform(batch_shape, event_shape, **_):
        u = queue.pop(0)
        assert u.shape == (*batch_shape, *event_shape)
        return u

    monkeypatch.setattr("lightning_estimators.estimators.base.refuse_coupled_costs", lambda *_, **__: None)  # draws
    monkeypatch.setattr("lightning_estimators.distributions.sampling.uniform", uniform)
    monkeypatch.setattr("lightning_estimators.estimators.relaxation.uniform", uniform)
    yield queue.extend
    assert not queue


def f(z):
    """A cost that couples all coordinates; z has the event axes of one case, flattened by the caller."""
    weights = torch.linspace(-1, 2, z.shape[-1])
    return torch.sin((z * weights).sum(-1)) + 0.7 * (z * weights.flip(-1)).sum(-1).square() + 0.3


def f_bernoulli(z):
    return f(z)


def f_categorical(z):
    return f(z.flatten(-2))


def bernoulli(logits):
    return Independent(Bernoulli(logits=logits), 1)


def categorical(logits):
    return Independent(OneHotCategorical(logits=logits), 1)


CASES = {
    "bernoulli": (bernoulli, f_bernoulli, (D,)),
    "categorical": (categorical, f_categorical, (2, K)),
}


def run(estimator, kind, logits, context=None):
    """Value, gradient of the logits divided by the upstream gradient, gradients of the surrogate parameters."""
    make, cost, event = CASES[kind]
    leaf = logits.clone().requires_grad_()
    value = estimator(make(leaf), cost, context)
    (value * UPSTREAM).sum().backward()
    own = {name: p.grad for name, p in estimator.named_parameters() if p.requires_grad}
    return value.detach(), leaf.grad / UPSTREAM.reshape(B, *[1] * len(event)), own


def draw(kind, *lead):
    return torch.rand(*lead, B, *CASES[kind][2]), torch.randn(B, *CASES[kind][2])


def logit(u):
    return torch.log(u / (1 - u))


def relaxed_bernoulli(logits, u, v):
    """Tucker et al. (2017): b, z and z̃ given b, all by the papers' v'."""
    p = torch.sigmoid(logits)
    z = logits + logit(u)
    b = (z > 0).to(z.dtype)
    v_prime = b * (v * p + 1 - p) + (1 - b) * v * (1 - p)
    return b, z, logits + logit(v_prime), b - p.detach()


def relaxed_categorical(logits, u, v):
    pi = torch.softmax(logits, -1)
    z = pi.log() - torch.log(-torch.log(u))
    b = nn.functional.one_hot(z.argmax(-1), K).to(z.dtype)
    v_b = (v * b).sum(-1, keepdim=True)
    others = -torch.log(-v.log() / pi - v_b.log())
    z_tilde = torch.where(b > 0, -torch.log(-torch.log(v_b)), others)
    return b, z, z_tilde, b - pi.detach()


RELAXED = {"bernoulli": relaxed_bernoulli, "categorical": relaxed_categorical}


def squash(kind, z, temperature):
    return torch.sigmoid(z / temperature) if kind == "bernoulli" else torch.softmax(z / temperature, -1)


def control_variate_formula(kind, logits, u, v, c):
    """[f(b) - c(z̃)] ∇log q(b) + ∇c(z) - ∇c(z̃), differentiable in what c depends on."""
    cost, event = CASES[kind][1:]
    leaf = logits.clone().requires_grad_()
    b, z, z_tilde, score = RELAXED[kind](leaf, u, v)
    c_z, c_tilde = c(z), c(z_tilde)
    (pathwise,) = torch.autograd.grad(c_z.sum(), leaf, create_graph=True)
    (pathwise_tilde,) = torch.autograd.grad(c_tilde.sum(), leaf, create_graph=True)
    signal = (cost(b) - c_tilde).reshape(*c_tilde.shape, *[1] * len(event))
    return cost(b), signal * score + pathwise - pathwise_tilde


def check_control_variate(estimator, kind, c, fix_noise, samples=1):
    """Compare with the formula; own parameters with the gradient of |upstream|-weighted squares."""
    (u, logits), (v, _) = draw(kind, samples), draw(kind, samples)
    fix_noise([u, v])
    value, gradient, own = run(estimator, kind, logits)
    wide = logits.expand(samples, *logits.shape)
    expected_value, expected = control_variate_formula(kind, wide, u, v, c)
    assert torch.allclose(value, expected_value.mean(0), **CLOSE)
    assert torch.allclose(gradient, expected.mean(0), **CLOSE)
    variance = (expected.square().flatten(2).sum(-1).mean(0) / samples * UPSTREAM.abs()).sum()
    learned = {name: p for name, p in estimator.named_parameters() if p.requires_grad}
    assert set(own) == set(learned)
    if learned:
        for name, g in zip(learned, torch.autograd.grad(variance, list(learned.values())), strict=True):
            assert torch.allclose(own[name], g, **CLOSE), name
            assert g.abs().max() > 1e-3, name


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("kind", CASES)
def test_rebar(kind, samples, fix_noise):
    rebar = REBAR(temperature=0.6, eta=0.8, num_samples=samples)
    cost = CASES[kind][1]
    check_control_variate(
        rebar,
        kind,
        lambda z: rebar.eta * cost(squash(kind, z, rebar.log_temperature.exp())),
        fix_noise,
        samples,
    )


@pytest.mark.parametrize("kind", CASES)
def test_fixed_rebar(kind, fix_noise):
    rebar = REBAR(temperature=0.6, eta=0.8, learn_temperature=False, learn_eta=False)
    check_control_variate(rebar, kind, lambda z: 0.8 * CASES[kind][1](squash(kind, z, 0.6)), fix_noise)


@pytest.mark.parametrize("kind", CASES)
def test_relax(kind, fix_noise):
    relax = RELAX(Surrogate(hidden=[3], activation="tanh"), learn_temperature=False)
    relax.prepare(CASES[kind][0](torch.zeros(B, *CASES[kind][2])))
    check_control_variate(relax, kind, lambda z: relax.surrogate(z.flatten(2)), fix_noise)


@pytest.mark.parametrize("kind", CASES)
def test_relax_at_another_temperature(kind, fix_noise):
    relax = RELAX(Surrogate(hidden=[3], activation="tanh"), temperature=0.4)
    relax.prepare(CASES[kind][0](torch.zeros(B, *CASES[kind][2])))
    check_control_variate(relax, kind, lambda z: relax.surrogate(z.flatten(2) / relax.log_temperature.exp()), fix_noise)


@pytest.mark.parametrize("kind", CASES)
def test_relaxed_rebar(kind, fix_noise):
    cost = CASES[kind][1]
    estimator = RelaxedREBAR(Surrogate(hidden=[3], activation="tanh"), temperature=0.4, eta=1.3)
    estimator.prepare(CASES[kind][0](torch.zeros(B, *CASES[kind][2])))

    def c(z):
        return estimator.surrogate(z.flatten(2)) + estimator.eta * cost(
            squash(kind, z, estimator.log_temperature.exp())
        )

    check_control_variate(estimator, kind, c, fix_noise)


@pytest.mark.parametrize("straight_through", [False, True])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("kind", CASES)
def test_concrete(kind, samples, straight_through, fix_noise):
    cost = CASES[kind][1]
    u, logits = draw(kind, samples)
    fix_noise([u])
    estimator = Concrete(0.6, learn_temperature=True, straight_through=straight_through, num_samples=samples)
    value, gradient, own = run(estimator, kind, logits)

    leaf, log_temperature = logits.clone().requires_grad_(), torch.tensor(math.log(0.6)).requires_grad_()
    b, z, _, _ = RELAXED[kind](leaf.expand(samples, *logits.shape), u, u)
    soft = squash(kind, z, log_temperature.exp())
    if straight_through:
        at = b.clone().requires_grad_()
        expected_value = cost(b).mean(0)
        (slope,) = torch.autograd.grad((cost(at).mean(0) * UPSTREAM).sum(), at)
        grads = torch.autograd.grad(soft, [leaf, log_temperature], slope)
    else:
        expected_value = cost(soft).mean(0)
        grads = torch.autograd.grad((expected_value * UPSTREAM).sum(), [leaf, log_temperature])
    assert torch.allclose(value, expected_value, **CLOSE)
    assert torch.allclose(gradient * UPSTREAM.reshape(B, *[1] * len(CASES[kind][2])), grads[0], **CLOSE)
    assert torch.allclose(own["log_temperature"], grads[1], **CLOSE)


def hard_sample(kind, logits, samples):
    """Noise, the sample it gives by inversion, and the score."""
    if kind == "bernoulli":
        u, p = torch.rand(samples, B, D), torch.sigmoid(logits)
        b = (u < p).to(u.dtype)
    else:
        u, p = torch.rand(samples, B, 2, 1), torch.softmax(logits, -1)
        b = nn.functional.one_hot((u > p.cumsum(-1)).sum(-1), K).to(u.dtype)
    return u, b, b - p


def per_sample(signal, kind):
    return signal.reshape(*signal.shape, *[1] * len(CASES[kind][2]))


@pytest.mark.parametrize("kind", CASES)
def test_score_function(kind, fix_noise):
    _, logits = draw(kind)
    u, b, score = hard_sample(kind, logits, 3)
    fix_noise([u])
    value, gradient, _ = run(REINFORCE(NoBaseline(), num_samples=3), kind, logits)
    cost = CASES[kind][1](b)
    assert torch.allclose(value, cost.mean(0), **CLOSE)
    assert torch.allclose(gradient, (per_sample(cost, kind) * score).mean(0), **CLOSE)


@pytest.mark.parametrize("kind", CASES)
def test_moving_average_knows_past_costs_only(kind, fix_noise):
    _, logits = draw(kind)
    estimator, average = REINFORCE(MovingAverage(decay=0.8)), None
    for _ in range(3):
        u, b, score = hard_sample(kind, logits, 1)
        fix_noise([u])
        _, gradient, _ = run(estimator, kind, logits)
        cost = CASES[kind][1](b)
        assert torch.allclose(gradient, per_sample(cost - (average or 0.0), kind)[0] * score[0], **CLOSE)
        average = cost.mean() if average is None else 0.8 * average + 0.2 * cost.mean()


@pytest.mark.parametrize("samples", [2, 3])
@pytest.mark.parametrize("kind", CASES)
def test_leave_one_out(kind, samples, fix_noise):
    _, logits = draw(kind)
    u, b, score = hard_sample(kind, logits, samples)
    fix_noise([u])
    _, gradient, _ = run(REINFORCE(LeaveOneOut(), num_samples=samples), kind, logits)
    cost = CASES[kind][1](b)
    expected = 0
    for s in range(samples):
        others = torch.stack([cost[r] for r in range(samples) if r != s]).mean(0)
        expected = expected + per_sample(cost[s] - others, kind) * score[s] / samples
    assert torch.allclose(gradient, expected, **CLOSE)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("kind", CASES)
def test_muprop(kind, samples, fix_noise):
    """Gu et al. (2016): the expansion at the mean is subtracted, and the gradient of its expectation is added."""
    _, logits = draw(kind)
    u, b, score = hard_sample(kind, logits, samples)
    fix_noise([u])
    estimator = MuProp(LeaveOneOut() if samples > 1 else NoBaseline(), num_samples=samples)
    value, gradient, _ = run(estimator, kind, logits)
    cost, leaf = CASES[kind][1], logits.clone().requires_grad_()
    mean = leaf.sigmoid() if kind == "bernoulli" else leaf.softmax(-1)
    at = mean.detach().requires_grad_()
    (slope,) = torch.autograd.grad(cost(at).sum(), at)
    dims = tuple(range(-len(CASES[kind][2]), 0))
    (exact,) = torch.autograd.grad((mean * slope).sum(), leaf)
    remainder = cost(b) - cost(at.detach()) - (slope * score).sum(dims)
    if samples > 1:
        remainder = remainder - (remainder.sum(0) - remainder) / (samples - 1)
    assert torch.allclose(value, cost(b).mean(0), **CLOSE)
    assert torch.allclose(gradient, (per_sample(remainder, kind) * score).mean(0) + exact, **CLOSE)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kind", CASES)
def test_nvil(kind, normalize, fix_noise):
    """Mnih & Gregor (2014), algorithm 1: centred by the prediction and the average, scaled by max(1, sqrt(v))."""
    context, network = torch.randn(B, 2), nn.Linear(2, 1)
    estimator = REINFORCE(LearnedBaseline(network, normalize=normalize, decay=0.8))
    _, logits = draw(kind)
    average, variance = torch.zeros(()), torch.zeros(())
    for call in range(3):
        u, b, score = hard_sample(kind, logits, 1)
        fix_noise([u])
        estimator.zero_grad()
        _, gradient, own = run(estimator, kind, logits, context)
        residual = CASES[kind][1](b)[0] - network(context).squeeze(-1)
        error = residual - average
        signal = error.detach() / (variance.sqrt().clamp_min(1) if normalize else 1)
        assert torch.allclose(gradient, per_sample(signal, kind) * score[0], **CLOSE)
        grads = torch.autograd.grad((error.square() * UPSTREAM.abs()).sum(), list(network.parameters()))
        for name, g in zip(("weight", "bias"), grads, strict=True):
            assert torch.allclose(own[f"baseline.network.{name}"], g, **CLOSE)
        keep = 0.8 if call else 0.0
        average = keep * average + (1 - keep) * residual.detach().mean()
        variance = keep * variance + (1 - keep) * error.detach().square().mean()


@pytest.mark.parametrize("samples", [1, 3])
def test_stochastic_backprop_eq_16(samples, fix_noise):
    _, logits = draw("bernoulli")
    u, b, _ = hard_sample("bernoulli", logits, samples)
    fix_noise([u])
    value, gradient, _ = run(StochasticBackprop(num_samples=samples), "bernoulli", logits)
    p = torch.sigmoid(logits)
    expected = torch.zeros(B, D)
    for j in range(D):
        on, off = b.clone(), b.clone()
        on[..., j], off[..., j] = 1, 0
        expected[:, j] = p[:, j] * (1 - p[:, j]) * (f(on) - f(off)).mean(0)
    assert torch.allclose(value, f(b).mean(0), **CLOSE)
    assert torch.allclose(gradient, expected, **CLOSE)


@pytest.mark.parametrize("samples", [1, 3])
def test_stochastic_backprop_eq_17_against_the_last_category(samples, fix_noise):
    _, logits = draw("categorical")
    u, b, _ = hard_sample("categorical", logits, samples)
    fix_noise([u])
    _, gradient, _ = run(StochasticBackprop(num_samples=samples), "categorical", logits)
    leaf = logits.clone().requires_grad_()
    pi = torch.softmax(leaf, -1)

    def put(j, k):
        z = b.clone()
        z[..., j, :] = nn.functional.one_hot(torch.tensor(k), K).to(z.dtype)
        return f_categorical(z).mean(0)

    total = sum((pi[:, j, k] * (put(j, k) - put(j, K - 1))).sum() for j in range(2) for k in range(K - 1))
    (expected,) = torch.autograd.grad(total, leaf)
    assert torch.allclose(gradient, expected, **CLOSE)


@pytest.mark.parametrize("kind", CASES)
def test_enumeration(kind):
    _, cost, event = CASES[kind]
    logits = torch.randn(B, *event)
    value, gradient, _ = run(Enumeration(), kind, logits)
    leaf = logits.clone().requires_grad_()
    states = 2 if kind == "bernoulli" else K
    points = torch.cartesian_prod(*[torch.arange(states)] * event[0])
    points = points.to(leaf.dtype) if kind == "bernoulli" else nn.functional.one_hot(points, K).to(leaf.dtype)
    total = 0
    for point in points:
        if kind == "bernoulli":
            probability = torch.where(point > 0, torch.sigmoid(leaf), 1 - torch.sigmoid(leaf)).prod(-1)
        else:
            probability = (torch.softmax(leaf, -1) * point).sum(-1).prod(-1)
        total = total + probability * cost(point)
    assert torch.allclose(value, total, **CLOSE)
    assert torch.allclose(gradient, torch.autograd.grad(total.sum(), leaf)[0], **CLOSE)
