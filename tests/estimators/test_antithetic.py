"""Estimators that draw their samples together: exactly unbiased, by a sum over all that their noise can do."""

import math
from itertools import combinations, pairwise, product

import pytest
import torch
from torch.distributions import Bernoulli, Independent, OneHotCategorical

from lightning_estimators.estimators import ARMS, CARMS, UGC, DisARM, Enumeration
from lightning_estimators.estimators.carms import _Orders
from lightning_estimators.estimators.dirichlet_copula import both_below, uniform_roots
from lightning_estimators.testing import BOUND

F64 = torch.float64
LOGITS = torch.tensor([-1.3, 0.4, 2.0], dtype=F64)
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def f(z):
    """A cost that couples all coordinates."""
    weights = torch.linspace(-1, 2, z.shape[-1], dtype=F64)
    return torch.sin((z * weights).sum(-1)) + 0.7 * (z * weights.flip(-1)).sum(-1).square() + 0.3


def gradient(estimator, logits, family=Bernoulli):
    leaf = logits.clone().requires_grad_()
    estimator.allow_coupled_costs = True  # looking for them draws noise
    cost = f if family is Bernoulli else lambda z: f(z.flatten(-2))
    value = estimator(Independent(family(logits=leaf), 1), cost)
    (grad,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), grad


@pytest.fixture
def fix_noise(monkeypatch):
    def fix(where, noise):
        monkeypatch.setattr(f"lightning_estimators.estimators.{where}", lambda *_, **__: noise)

    return fix


def disarm_cells(p):
    """Midpoints and widths of the intervals of u, per coordinate, inside which nothing changes."""
    cells = []
    for probability in p:
        edges = sorted([0.0, probability, 1 - probability, 1.0])
        cells.append([((a + b) / 2, b - a) for a, b in pairwise(edges)])
    points = list(product(*cells))
    midpoints = torch.tensor([[u for u, _ in point] for point in points], dtype=F64)
    weights = torch.tensor([math.prod(w for _, w in point) for point in points], dtype=F64)
    return midpoints, weights


def test_disarm_is_exactly_unbiased(fix_noise):
    u, weights = disarm_cells(LOGITS.sigmoid().tolist())
    fix_noise("disarm.uniform", u.unsqueeze(0))
    value, grad = gradient(DisARM(), LOGITS.expand(len(u), -1))
    exact_value, exact = gradient(Enumeration(), LOGITS)
    assert torch.allclose(weights @ value, exact_value, **CLOSE)
    assert torch.allclose(weights @ grad, exact, **CLOSE)


def test_disarm_is_arm_averaged_over_the_noise_that_gives_the_same_pair(fix_noise):
    """In every cell of the noise of all coordinates, by midpoints, which integrate what is linear in u exactly."""
    p = LOGITS.sigmoid()
    u, weights = disarm_cells(p.tolist())
    b, antithetic = (u > 1 - p).to(F64), (u < p).to(F64)
    arm = (f(b) - f(antithetic)).unsqueeze(-1) * (u - 0.5)
    fix_noise("disarm.uniform", torch.where(p > 0.5, 1 - u, u).unsqueeze(0))  # of which it draws the rarer outcome
    _, grad = gradient(DisARM(), LOGITS.expand(len(u), -1))
    pairs = torch.cat([b, antithetic], -1)
    for pair in pairs.unique(dim=0):
        same = (pairs == pair).all(-1)
        mean = weights[same] @ arm[same] / weights[same].sum()
        assert torch.allclose(grad[same], mean.expand_as(grad[same]), **CLOSE)


@pytest.mark.parametrize(("threshold", "clipped"), [(0.0, 0), (None, 1), (0.3, 2), (0.5, 3)])
def test_ugc_is_exactly_unbiased(threshold, clipped, monkeypatch):
    """Over all noise and all coordinates that may be flipped: those whose rarer outcome is rarer than the threshold."""
    u, weights = disarm_cells(LOGITS.sigmoid().tolist())
    choices = max(clipped, 1)
    choice = (torch.arange(choices, dtype=F64) + 0.5).div(choices).repeat_interleave(len(u))
    noise = [u.repeat(choices, 1).unsqueeze(0), choice.reshape(1, -1, 1)]
    monkeypatch.setattr("lightning_estimators.estimators.ugc.uniform", lambda *_, **__: noise.pop(0))
    value, grad = gradient(UGC(threshold), LOGITS.expand(len(choice), -1))
    exact_value, exact = gradient(Enumeration(), LOGITS)
    weights = weights.repeat(choices) / choices
    assert torch.allclose(weights @ value, exact_value, **CLOSE)
    assert torch.allclose(weights @ grad, exact, **CLOSE)


def test_bitflip_moves_one_coordinate_by_the_exact_rule(monkeypatch):
    """Of which the estimate is the number of coordinates times the local expectation, and the others get nothing."""
    b = torch.tensor([1.0, 0.0, 1.0], dtype=F64)
    noise = [torch.where((LOGITS > 0) == (b > 0), 0.999, 0.001).unsqueeze(0), torch.full((1, 1), 0.5, dtype=F64)]
    monkeypatch.setattr("lightning_estimators.estimators.ugc.uniform", lambda *_, **__: noise.pop(0))
    value, grad = gradient(UGC(threshold=0.5), LOGITS)
    p = LOGITS[1].sigmoid()
    flipped = f(torch.tensor([1.0, 1.0, 1.0], dtype=F64))
    assert torch.allclose(value, f(b), **CLOSE)
    assert torch.allclose(grad, torch.tensor([0.0, 1.0, 0.0], dtype=F64) * 3 * p * (1 - p) * (flipped - f(b)), **CLOSE)


def test_ugc_varies_far_less_than_disarm_where_all_is_all_but_decided():
    torch.manual_seed(0)
    logits = 6 * LOGITS.sign().expand(100_000, -1)
    varied = [gradient(estimator, logits)[1].square().sum() for estimator in (DisARM(num_samples=2), UGC())]
    assert varied[1] < 0.1 * varied[0]


@pytest.mark.parametrize("threshold", [-0.1, 0.6, math.nan])
def test_ugc_refuses_thresholds_that_are_no_probability_of_the_rarer_outcome(threshold):
    with pytest.raises(ValueError, match=r"threshold"):
        UGC(threshold)


def patterns(rarer, samples):
    """Which samples have the less probable outcome, per coordinate, and the probability of it."""
    power = samples - 1
    root = rarer ** (1 / power)

    def all_of(count):
        return max(count * root - (count - 1), 0.0) ** power

    found = []
    for pattern in product([0, 1], repeat=samples):
        have, lack = sum(pattern), samples - sum(pattern)
        probability = sum((-1) ** j * math.comb(lack, j) * all_of(have + j) for j in range(lack + 1))
        found.append((pattern, probability))
    return found


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_arms_is_exactly_unbiased(samples, fix_noise):
    logits = torch.tensor([-0.9, 0.6], dtype=F64)  # two samples of four may both have the less probable outcome
    points = list(product(*(patterns(m, samples) for m in torch.sigmoid(-logits.abs()).tolist())))
    weights = torch.tensor([math.prod(w for _, w in point) for point in points], dtype=F64)
    rare = torch.tensor([[pattern for pattern, _ in point] for point in points], dtype=F64).permute(2, 0, 1)
    fix_noise("arms.uniform_roots", 1 - rare)
    value, grad = gradient(ARMS(num_samples=samples), logits.expand(len(points), -1))
    exact_value, exact = gradient(Enumeration(), logits)
    assert torch.allclose(weights.sum(), torch.ones((), dtype=F64), **CLOSE)
    assert torch.allclose(weights @ value, exact_value, **CLOSE)
    assert torch.allclose(weights @ grad, exact, **CLOSE)


def test_arms_with_two_samples_is_disarm(fix_noise):
    u = torch.rand(500, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    fix_noise("disarm.uniform", u.unsqueeze(0))
    fix_noise("arms.uniform_roots", torch.stack([1 - u, u]))
    logits = LOGITS.expand(500, -1)
    for one, other in zip(gradient(DisARM(), logits), gradient(ARMS(num_samples=2), logits), strict=True):
        assert torch.allclose(one, other, **CLOSE)


def probability_of(classes, pi):
    """That the samples of one categorical variable are of these classes: an average over orders of sums over corners.

    All noises are below their limits, v_k < a_k, with probability max(sum of a - (K - 1), 0)^(K - 1).
    """
    power, count = len(classes) - 1, len(pi)
    total = 0.0
    for first, last in combinations(range(count), 2):
        cycle = [(first + step) % count for step in range(count)]
        order = [*(c for c in cycle if c != last), last]
        ends = [sum(pi[c] for c in order[:place]) for place in range(count + 1)]
        intervals = [(ends[order.index(c)], ends[order.index(c) + 1]) for c in classes]
        for corner in product([0, 1], repeat=len(classes)):
            roots = [interval[side] ** (1 / power) for interval, side in zip(intervals, corner, strict=True)]
            total += (-1) ** corner.count(0) * max(sum(roots) - power, 0.0) ** power
    return total / math.comb(count, 2)


@pytest.mark.parametrize("samples", [2, 3])
def test_carms_is_exactly_unbiased(samples, monkeypatch):
    """Two variables of three classes, over all classes that all samples can have."""
    logits = torch.tensor([[0.3, -0.8, 0.5], [1.5, 0.0, -1.0]], dtype=F64)
    one = [
        [(c, probability_of(c, pi)) for c in product(range(3), repeat=samples)] for pi in logits.softmax(-1).tolist()
    ]
    points = list(product(*one))
    weights = torch.tensor([math.prod(w for _, w in point) for point in points], dtype=F64)
    classes = torch.tensor([[c for c, _ in point] for point in points]).permute(2, 0, 1)
    monkeypatch.setattr(_Orders, "draw", lambda *_: classes)
    value, grad = gradient(CARMS(num_samples=samples), logits.expand(len(points), -1, -1), OneHotCategorical)
    exact_value, exact = gradient(Enumeration(), logits, OneHotCategorical)
    assert torch.allclose(weights.sum(), torch.ones((), dtype=F64), **CLOSE)
    assert torch.allclose(weights @ value, exact_value, **CLOSE)
    assert torch.allclose(torch.einsum("n,nvc->vc", weights, grad), exact, **CLOSE)


@pytest.mark.parametrize("samples", [2, 3])
def test_carms_draws_classes_as_often_as_it_says(samples):
    torch.manual_seed(0)
    n, probs = 100_000, torch.tensor([0.4, 0.15, 0.1, 0.35], dtype=F64)
    drawn = _Orders(probs.expand(n, -1)).draw(OneHotCategorical(probs=probs.expand(samples, n, -1)))
    for classes in product(range(4), repeat=samples):
        expected = probability_of(classes, probs.tolist())
        found = (drawn == torch.tensor(classes).unsqueeze(-1)).all(0).to(F64).mean()
        assert abs(found - expected) < BOUND * math.sqrt(max(expected, 1e-9) * (1 - expected) / n), classes


@pytest.mark.parametrize("samples", [2, 4])
def test_carms_stays_finite_and_right_where_probabilities_round_to_0_or_1(samples):
    torch.manual_seed(0)
    for scale in (10.0, 40.0, 90.0, math.inf):
        leaf = torch.tensor([[0.2, 0.0, -scale], [scale if scale < math.inf else 90.0, 0.0, -scale]])
        leaf = leaf.expand(2000, -1, -1).clone().requires_grad_()
        weight = torch.tensor([[3.0, 0.0, 1.0], [1.0, -2.0, 1.0]])
        q = Independent(OneHotCategorical(logits=leaf), 1)
        CARMS(samples)(q, lambda z, w=weight: (z * w).sum((-1, -2))).sum().backward()
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().max() <= 20
        exact = torch.tensor([3 * 0.55 * 0.45, -3 * 0.55 * 0.45])
        assert ((leaf.grad[:, 0, :2].mean(0) - exact).abs() < 0.1).all()
        if scale > 10:
            assert (leaf.grad[:, 1] == 0).all()
            assert (leaf.grad[:, 0, 2] == 0).all()


@pytest.mark.parametrize("samples", [2, 3, 5])
def test_noise_of_the_dirichlet_copula(samples):
    """Every sample is uniform; the probabilities of pairs are those that estimators divide by."""
    torch.manual_seed(0)
    n, power = 100_000, samples - 1
    v = uniform_roots((samples, n), (), dtype=F64, device=torch.device("cpu"))
    for a, b in [(0.3, 1.0), (0.6, 0.5), (0.9, 0.2)]:
        roots = torch.tensor([a, b], dtype=F64) ** (1 / power)
        expected = both_below(roots[0], roots[1], power)
        if b == 1:
            assert torch.allclose(expected, torch.tensor(a, dtype=F64))
        for i, j in [(0, 1), (samples - 1, 0)]:
            found = ((v[i] < roots[0]) & (v[j] < roots[1])).to(F64)
            error = (expected * (1 - expected) / n).sqrt() + 1e-12
            assert (found.mean() - expected).abs() < BOUND * error


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("samples", [2, 3, 8])
def test_arms_stays_finite_and_right_where_probabilities_round_to_0_or_1(samples, dtype):
    """Its weight is 0 / 0 there as it is published; it lies between 1/2 and 2, and is 1 in the limit."""
    torch.manual_seed(0)
    for scale in (10.0, 17.0, 40.0, 90.0, math.inf):
        logits = torch.tensor([scale, -scale, 0.2], dtype=dtype).expand(2000, -1)
        leaf = logits.clone().requires_grad_()
        weight = torch.tensor([1.0, -2.0, 3.0], dtype=dtype)
        ARMS(samples)(Independent(Bernoulli(logits=leaf), 1), lambda b, w=weight: (b * w).sum(-1)).sum().backward()
        assert leaf.grad.isfinite().all()
        assert leaf.grad[:, 2].abs().max() <= 2 * samples / (samples - 1)
        exact = torch.tensor(3 * 0.55 * 0.45, dtype=dtype)
        assert (leaf.grad[:, 2].mean() - exact).abs() < 0.05
        if scale > 17:
            assert (leaf.grad[:, :2] == 0).all()


@pytest.mark.parametrize("samples", [1, 3])
def test_disarm_refuses_samples_that_are_no_pairs(samples):
    with pytest.raises(ValueError, match=r"at least 2, got 1|even num_samples, got 3"):
        DisARM(num_samples=samples)


def test_independent_pairs_halve_the_variance():
    torch.manual_seed(0)
    logits = LOGITS.expand(20_000, -1)
    one, two = (gradient(DisARM(num_samples=n), logits)[1].var(0).sum() for n in (2, 4))
    assert 0.47 < two / one < 0.53
