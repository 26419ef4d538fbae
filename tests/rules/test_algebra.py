"""Every rule at a fixed sample and fixed noise, against its formula written out point by point."""

import math

import pytest
import torch
from torch.distributions import (
    Bernoulli,
    Beta,
    Chi2,
    Dirichlet,
    Exponential,
    Gamma,
    Independent,
    Laplace,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
    Poisson,
)

from lightning_estimators.distributions import sampling
from lightning_estimators.objectives import CallableObjective
from lightning_estimators.rules import dirichlet, jumps, rule_for

F64 = torch.float64


def cost(z):
    """Every coordinate interacts with every other."""
    steps = torch.arange(1.0, z.shape[-1] + 1, dtype=z.dtype)
    return (z * steps).sum(-1).sin() + 0.3 * (z[..., 0] * z[..., -1] ** 2) + (z * steps).square().sum(-1).sqrt()


def slope(z, direction):
    """Derivative of the cost at z in a direction."""
    leaf = z.clone().requires_grad_()
    return (torch.autograd.grad(cost(leaf), leaf)[0] * direction).sum()


def moved(z, j, value):
    return torch.cat([z[:j], torch.as_tensor(value).reshape(1), z[j + 1 :]])


def unit(z, j):
    return torch.eye(len(z), dtype=F64)[j]


@pytest.fixture
def noise(monkeypatch):
    """The uniform numbers, and the gammas, in the order in which rules drew them; each of shape (1, D)."""
    drawn = []

    def recording(original):
        def draw(*args, **settings):
            out = original(*args, **settings)
            drawn.append(out[0].clone())
            return out

        return draw

    monkeypatch.setattr(jumps, "uniform", recording(jumps.uniform))
    monkeypatch.setattr(dirichlet, "uniform", recording(dirichlet.uniform))
    monkeypatch.setattr(sampling, "standard_gamma", recording(sampling.standard_gamma))
    return drawn


def vector(*values):
    return torch.tensor([values], dtype=F64)


def apply(q, z, *, f_gradient):
    f = CallableObjective(cost, event_dim=1)
    return {name: g[0] for name, g in rule_for(q, f_gradient=f_gradient)(q, z.unsqueeze(0), f).items()}


def close(found, expected):
    torch.testing.assert_close(found, torch.stack(list(expected)), rtol=1e-6, atol=1e-6)


Z = torch.tensor([0.4, -0.3], dtype=F64)
POSITIVE = torch.tensor([0.4, 1.3], dtype=F64)
INSIDE = torch.tensor([0.2, 0.7], dtype=F64)


def test_bernoulli():
    p, z = [0.3, 0.8], torch.tensor([1.0, 0.0], dtype=F64)
    found = apply(Independent(Bernoulli(probs=vector(*p)), 1), z, f_gradient=False)["logits"]
    close(found, [p[j] * (1 - p[j]) * (cost(moved(z, j, 1.0)) - cost(moved(z, j, 0.0))) for j in range(2)])


def test_categorical():
    p = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]], dtype=F64)
    z = torch.eye(3, dtype=F64)[[1, 0]]
    f = CallableObjective(lambda z: cost(z.flatten(-2)), event_dim=2)
    q = Independent(OneHotCategorical(probs=p[None]), 1)
    found = rule_for(q, f_gradient=False)(q, z[None], f)["logits"][0]
    for j in range(2):
        values = []
        for k in range(3):
            other = z.clone()
            other[j] = torch.eye(3, dtype=F64)[k]
            values.append(cost(other.flatten()))
        mean = sum(p[j, k] * values[k] for k in range(3))
        close(found[j], [p[j, k] * (values[k] - mean) for k in range(3)])


def test_laplace_differences(noise):
    loc, scale = [0.1, -0.2], [0.5, 0.9]
    found = apply(Independent(Laplace(vector(*loc), vector(*scale)), 1), Z, f_gradient=False)
    e, a, b = (-u.log() for u in noise)
    close(
        found["loc"],
        [
            (cost(moved(Z, j, loc[j] + scale[j] * e[j])) - cost(moved(Z, j, loc[j] - scale[j] * e[j]))) / 2 / scale[j]
            for j in range(2)
        ],
    )
    jump = [scale[j] * (a[j] - b[j]) for j in range(2)]
    close(
        found["scale"],
        [
            (cost(moved(Z, j, Z[j] + jump[j])) + cost(moved(Z, j, Z[j] - jump[j])) - 2 * cost(Z)) / scale[j]
            for j in range(2)
        ],
    )


def test_laplace_derivatives(noise):
    loc, scale = [0.1, -0.2], [0.5, 0.9]
    found = apply(Independent(Laplace(vector(*loc), vector(*scale)), 1), Z, f_gradient=True)
    (e,) = (-u.log() for u in noise)
    close(found["loc"], [slope(Z, unit(Z, j)) for j in range(2)])
    steps = [scale[j] * e[j] for j in range(2)]
    close(
        found["scale"],
        [
            slope(moved(Z, j, Z[j] + steps[j]), unit(Z, j)) - slope(moved(Z, j, Z[j] - steps[j]), unit(Z, j))
            for j in range(2)
        ],
    )


def curvature(z):
    return torch.autograd.functional.hessian(cost, z)


def test_normal():
    scale = [0.5, 0.9]
    found = apply(Independent(Normal(vector(0.1, -0.2), vector(*scale)), 1), Z, f_gradient=True)
    close(found["loc"], [slope(Z, unit(Z, j)) for j in range(2)])
    close(found["scale"], [scale[j] * curvature(Z)[j, j] for j in range(2)])


def test_multivariate_normal():
    """dL of 1/2 tr(H dΣ) with dΣ = dL Lᵀ + L dLᵀ, entry by entry."""
    factor = torch.tensor([[0.7, 0.0], [-0.4, 1.2]], dtype=F64)
    q = MultivariateNormal(vector(0.1, -0.2), scale_tril=factor[None])
    found = apply(q, Z, f_gradient=True)
    close(found["loc"], [slope(Z, unit(Z, j)) for j in range(2)])
    for i in range(2):
        for j in range(i + 1):
            change = torch.zeros(2, 2, dtype=F64)
            change[i, j] = 1.0
            covariance = change @ factor.T + factor @ change.T
            close(found["scale_tril"][i, j][None], [(curvature(Z) @ covariance).trace() / 2])
    assert found["scale_tril"][0, 1] == 0


GAMMAS = {
    "Gamma": (lambda: Gamma(vector(0.6, 2.5), vector(0.8, 3.0)), [0.6, 2.5], [1 / 0.8, 1 / 3.0]),
    "Exponential": (lambda: Exponential(vector(0.8, 3.0)), [1.0, 1.0], [1 / 0.8, 1 / 3.0]),
    "Chi2": (lambda: Chi2(vector(1.2, 5.0)), [0.6, 2.5], [2.0, 2.0]),
}


@pytest.mark.parametrize("family", GAMMAS)
@pytest.mark.parametrize("f_gradient", [False, True])
def test_gamma(family, f_gradient, noise):
    make, shape, scale = GAMMAS[family]
    found = apply(Independent(make(), 1), POSITIVE, f_gradient=f_gradient)
    draws = list(noise)
    if "rate" in found:  # d / d rate = -scale^2 d / d scale
        jump = [scale[j] * -draws[0][j].log() for j in range(2)]
        draws = draws[1:]
        ends = [moved(POSITIVE, j, POSITIVE[j] + jump[j]) for j in range(2)]
        by_scale = (
            [shape[j] * slope(ends[j], unit(Z, j)) for j in range(2)]
            if f_gradient
            else [shape[j] / scale[j] * (cost(ends[j]) - cost(POSITIVE)) for j in range(2)]
        )
        close(found["rate"], [-(scale[j] ** 2) * by_scale[j] for j in range(2)])
    if family != "Exponential":
        s, u = draws
        ends = [moved(POSITIVE, j, POSITIVE[j] + s[j] * scale[j] * -u[j].log()) for j in range(2)]
        by_shape = (
            [scale[j] * slope(ends[j], unit(Z, j)) for j in range(2)]
            if f_gradient
            else [(cost(ends[j]) - cost(POSITIVE)) / s[j] for j in range(2)]
        )
        name, factor = ("df", 0.5) if family == "Chi2" else ("concentration", 1.0)
        close(found[name], [factor * by_shape[j] for j in range(2)])


def test_poisson():
    z = torch.tensor([2.0, 0.0], dtype=F64)
    found = apply(Independent(Poisson(vector(1.5, 0.2)), 1), z, f_gradient=False)["rate"]
    close(found, [cost(moved(z, j, z[j] + 1)) - cost(z) for j in range(2)])


def test_negative_binomial(noise):
    r, p, z = [1.5, 0.2], [0.3, 0.9], torch.tensor([2.0, 0.0], dtype=F64)
    q = NegativeBinomial(vector(*r), probs=vector(*p))
    found = apply(Independent(q, 1), z, f_gradient=False)
    u, v, w = noise
    logarithmic = [1 + math.floor(v[j].log() / math.log(1 - (1 - p[j]) ** u[j])) for j in range(2)]
    geometric = [math.ceil(w[j].log() / math.log(p[j])) for j in range(2)]
    close(
        found["total_count"],
        [-math.log(1 - p[j]) * (cost(moved(z, j, z[j] + logarithmic[j])) - cost(z)) for j in range(2)],
    )
    # d / d logits = p (1 - p) d / dp
    by_p = [r[j] / (1 - p[j]) * (cost(moved(z, j, z[j] + geometric[j])) - cost(z)) for j in range(2)]
    close(found["logits"], [p[j] * (1 - p[j]) * by_p[j] for j in range(2)])


def test_logarithmic_jumps_are_finite_where_p_rounds_to_1():
    q = NegativeBinomial(torch.full((1000,), 2.0), logits=torch.full((1000,), 50.0))
    gradient = rule_for(q, f_gradient=False)(q, torch.ones(1000), CallableObjective(torch.sin, event_dim=0))
    assert gradient["total_count"].isfinite().all()
    assert gradient["logits"].isfinite().all()


def difference_jump(total, t, u):
    """x uniform in log(total + x) between 0 and t, and its density's inverse times 1/x, cleared of e^-x by t."""
    spread = math.log(1 + t / total)
    x = total * (math.exp(u * spread) - 1)
    return x, spread * (total + x) / x


def test_dirichlet_differences(noise):
    z = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    alpha = [0.6, 1.1, 0.4]
    found = apply(Dirichlet(vector(*alpha)), z, f_gradient=False)["concentration"]
    u, g, t, s = noise
    total = g[0] * u[0] ** (1 / sum(alpha))
    expected = []
    for i in range(3):
        x, weight = difference_jump(total, -t[i].log(), s[i])
        end = (total * z + x * unit(z, i)) / (total + x)
        expected.append((cost(end) - cost(z)) * weight)
    close(found, expected)


def derivative_jump(total, y, far, near, u):
    """T by a mixture of two proposals, x uniform in log(total + x) up to T: weight and x."""
    if near < 0.5:
        t = total * (math.exp(y * math.log(1 + 1 / total)) - 1)
        proposal = 0.5 / (math.log(1 + 1 / total) * (t + total))
    else:
        t = 1 - math.log(far)
        proposal = 0.5 * math.exp(1 - t)
    spread = math.log(1 + t / total)
    x = total * (math.exp(u * spread) - 1)
    return x, math.exp(-t) / proposal * spread / t


def test_dirichlet_derivatives(noise):
    z = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    alpha = [0.6, 1.1, 0.4]
    for seed in range(4):  # both proposals
        noise.clear()
        torch.manual_seed(seed)
        found = apply(Dirichlet(vector(*alpha)), z, f_gradient=True)["concentration"]
        u, g, y, far, near, s = noise
        total = g[0] * u[0] ** (1 / sum(alpha))
        expected = []
        for i in range(3):
            x, weight = derivative_jump(total, y[i], far[i], near[i], s[i])
            end = (total * z + x * unit(z, i)) / (total + x)
            expected.append(slope(end, unit(z, i) - end) * weight)
        close(found, expected)


@pytest.mark.parametrize("f_gradient", [False, True])
def test_beta(f_gradient, noise):
    a, b = [0.6, 2.0], [1.1, 0.3]
    found = apply(Independent(Beta(vector(*a), vector(*b)), 1), INSIDE, f_gradient=f_gradient)
    u, g, *rest = noise
    half = len(rest) // 2
    for name, corner, draws in (("concentration1", 1.0, rest[:half]), ("concentration0", 0.0, rest[half:])):
        expected = []
        for j in range(2):
            total = g[j] * u[j] ** (1 / (a[j] + b[j]))
            if f_gradient:
                y, far, near, s = draws
                x, weight = derivative_jump(total, y[j], far[j], near[j], s[j])
            else:
                t, s = draws
                x, weight = difference_jump(total, -t[j].log(), s[j])
            end = moved(INSIDE, j, (total * INSIDE[j] + x * corner) / (total + x))
            change = slope(end, unit(end, j)) * (corner - end[j]) if f_gradient else cost(end) - cost(INSIDE)
            expected.append(change * weight)
        close(found[name], expected)
