"""Double control variates and RODEO against their papers' formulas, sample by sample; saturation and masks."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, OneHotCategorical

from lightning_estimators.baselines import LeaveOneOut
from lightning_estimators.estimators import REINFORCE, RODEO, DoubleCV
from lightning_estimators.testing import BOUND

F64 = torch.float64
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
B, UPSTREAM = 4, torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=F64)


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(F64)
    yield
    torch.set_default_dtype(torch.float32)


def bernoulli(logits):
    return Independent(Bernoulli(logits=logits), 1)


def categorical(logits):
    return Independent(OneHotCategorical(logits=logits), 1)


KINDS = {"bernoulli": (bernoulli, (3,)), "categorical": (categorical, (2, 3))}


def f(z, event):
    z = z.flatten(-event) if event > 1 else z
    weights = torch.linspace(-1, 2, z.shape[-1], dtype=z.dtype)
    return torch.sin(2 * (z * weights).sum(-1)) + (z * weights.flip(-1)).sum(-1).pow(3) + 0.3


def drawn(kind, samples):
    """Logits, samples (samples, B, ...), their costs and slopes."""
    make, event = KINDS[kind]
    torch.manual_seed(0)
    logits = torch.randn(B, *event)
    z = make(logits).sample((samples,)).requires_grad_()
    costs = f(z, len(event))
    return logits, z.detach(), costs.detach(), torch.autograd.grad(costs.sum(), z)[0]


def run(estimator, kind, logits, z, monkeypatch):
    """Gradient in the logits over the upstream gradient, and in own parameters."""
    make, event = KINDS[kind]
    module = type(estimator).__module__
    monkeypatch.setattr(f"{module}.sample", lambda _: z)
    estimator.allow_coupled_costs = True
    leaf = logits.clone().requires_grad_()
    (estimator(make(leaf), lambda z: f(z, len(event))) * UPSTREAM).sum().backward()
    return leaf.grad / UPSTREAM.reshape(B, *[1] * len(event))


def probabilities(kind, logits):
    return logits.sigmoid() if kind == "bernoulli" else logits.softmax(-1)


def covariance(kind, p):
    """Of one example's variables, as a matrix over the flattened event."""
    if kind == "bernoulli":
        return torch.diag(p * (1 - p))
    return torch.block_diag(*(torch.diag(pi) - pi[:, None] * pi for pi in p))


def mean_of_others(values, k):
    return sum(value for j, value in enumerate(values) if j != k) / (len(values) - 1)


def check_own(estimator, expected):
    """Own parameters have the gradient of the squares of the formula, weighted by |upstream|."""
    own = [p for p in estimator.parameters() if p.requires_grad]
    loss = sum(UPSTREAM[i].abs() * g.square().sum() for i, g in enumerate(expected))
    for p, g in zip(own, torch.autograd.grad(loss, own), strict=True):
        assert torch.allclose(p.grad, g, **CLOSE)
        assert g.abs().max() > 1e-4


@pytest.mark.parametrize("samples", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_double_cv(kind, samples, monkeypatch):
    """Titsias & Shi (2022), one example and one sample at a time."""
    estimator = DoubleCV(alpha=-0.4, num_samples=samples)
    logits, z, costs, slopes = drawn(kind, samples)
    found = run(estimator, kind, logits, z, monkeypatch)
    expected = []
    for i in range(B):
        p = probabilities(kind, logits[i])
        score = [(z[k, i] - p).flatten() for k in range(samples)]
        slope = [slopes[k, i].flatten() for k in range(samples)]
        model = [estimator.alpha * (score[k] @ mean_of_others(slope, k)) for k in range(samples)]
        total = [costs[k, i] + model[k] for k in range(samples)]
        g = sum((total[k] - mean_of_others(total, k)) * score[k] for k in range(samples)) / samples
        expected.append(g - estimator.alpha * covariance(kind, p) @ sum(slope) / samples)
    assert torch.allclose(found.flatten(1), torch.stack(expected), **CLOSE)
    check_own(estimator, expected)


def stein(h, z, p, kind):
    """Gibbs operator: every variable drawn anew, each with probability 1 / D."""
    total = 0
    for i in range(len(z)):
        for value in (0.0, 1.0) if kind == "bernoulli" else torch.eye(3):
            moved = z.clone()
            moved[i] = value
            weight = (p[i] if value else 1 - p[i]) if kind == "bernoulli" else p[i] @ value
            total = total + weight * (h(moved) - h(z)) / len(z)
    return total


@pytest.mark.parametrize("samples", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_rodeo(kind, samples, monkeypatch):
    """Shi et al. (2022), by the operator's definition, one example, sample and move at a time."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    estimator = RODEO(network, alpha=0.7, beta=-0.3, num_samples=samples)
    logits, z, costs, slopes = drawn(kind, samples)
    found = run(estimator, kind, logits, z, monkeypatch)
    expected = []
    for i in range(B):
        p = probabilities(kind, logits[i])

        def outputs(y, k, i=i):
            foretold = [(slopes[j, i] * (y - z[j, i])).sum() for j in range(samples)]
            return network(torch.stack([mean_of_others(costs[:, i], k), mean_of_others(foretold, k)]))

        first = [stein(lambda y, k=k, o=outputs: o(y, k)[0], z[k, i], p, kind) for k in range(samples)]
        second = [stein(lambda y, k=k, o=outputs, p=p: o(y, k)[1] * (y - p), z[k, i], p, kind) for k in range(samples)]
        total = [costs[k, i] + estimator.alpha * first[k] for k in range(samples)]
        g = 0
        for k in range(samples):
            signal = costs[k, i] - mean_of_others(total, k)
            g = g + (signal * (z[k, i] - p) + estimator.beta * second[k]) / samples
        expected.append(g)
    assert torch.allclose(found, torch.stack(expected), **CLOSE)
    check_own(estimator, expected)


@pytest.mark.parametrize("make", [lambda: DoubleCV(num_samples=3), lambda: RODEO(num_samples=3)])
@pytest.mark.parametrize("kind", KINDS)
def test_both_start_as_leave_one_out(kind, make, monkeypatch):
    logits, z, _, _ = drawn(kind, 3)
    found = run(make(), kind, logits, z, monkeypatch)
    assert torch.allclose(found, run(REINFORCE(LeaveOneOut(), 3), kind, logits, z, monkeypatch), **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_double_cv_is_exact_where_f_is_linear(kind):
    make, event = KINDS[kind]
    leaf = torch.randn(B, *event).requires_grad_()
    weights = torch.arange(math.prod(event), dtype=F64).reshape(event)

    def linear(z):
        return (weights * z).sum(tuple(range(-len(event), 0)))

    (found,) = torch.autograd.grad(DoubleCV(alpha=-1.0)(make(leaf), linear).sum(), leaf)
    (exact,) = torch.autograd.grad(linear(probabilities(kind, leaf)).sum(), leaf)
    assert torch.allclose(found, exact, **CLOSE)


@pytest.mark.parametrize("make", [lambda: DoubleCV(alpha=-0.5), lambda: RODEO(alpha=0.4, beta=0.4)])
@pytest.mark.parametrize("limit", [40.0, 1e9, math.inf])
def test_decided_variables_in_single_precision(make, limit):
    """Nothing for them, and for the others what they get without them."""
    torch.manual_seed(0)
    logits = torch.tensor([[0.3, limit, -limit]], dtype=torch.float32).repeat(5000, 1).requires_grad_()
    estimator = make().float()
    estimator(bernoulli(logits), lambda b: (b * torch.tensor([1.0, 2.0, 3.0])).sum(-1).square()).sum().backward()
    assert logits.grad[:, 1:].abs().max() < 1e-12
    mean, error = logits.grad[:, 0].mean(), logits.grad[:, 0].std() / 5000**0.5
    p = torch.tensor(0.3).sigmoid()
    assert (mean - p * (1 - p) * (9 - 4)).abs() < BOUND * error + 1e-4
    assert all(p.grad.isfinite().all() for p in estimator.parameters())


def test_networks_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"RODEO must map \(points, 2\) to \(points, 2\).*returned \(1, 3\)"):
        RODEO(nn.Linear(2, 3)).prepare(bernoulli(torch.zeros(2, 3)))


@pytest.mark.parametrize("make", [DoubleCV, RODEO])
def test_a_single_sample_is_refused(make):
    with pytest.raises(ValueError, match=f"{make.__name__} needs an integer num_samples of at least 2, got 1"):
        make(num_samples=1)
