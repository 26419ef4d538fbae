"""Where rules end: vectors side by side, costs outside the domain of a cumulant, and parameters that repeat."""

import pytest
import torch
from torch.distributions import (
    Bernoulli,
    Beta,
    Dirichlet,
    Gamma,
    Independent,
    Laplace,
    MultivariateNormal,
    NegativeBinomial,
)

from lightning_estimators.estimators import REBAR, Pathwise, RelaxedREBAR, StochasticBackprop
from lightning_estimators.networks import Surrogate
from lightning_estimators.objectives import CallableObjective, ExponentialCost, SquaredCost
from lightning_estimators.rules.counts import negative_binomial_cumulant
from lightning_estimators.rules.gamma import gamma_cumulant
from lightning_estimators.rules.laplace import laplace_cumulant
from lightning_estimators.rules.normal import multivariate_normal_derivatives, normal_cumulant
from lightning_estimators.rules.series import series_coefficients
from lightning_estimators.testing import Moments, Report

F64 = torch.float64
LOC = torch.tensor([[0.3, -0.2], [0.1, 0.4]], dtype=F64)
FACTOR = torch.tensor([[[0.8, 0.0], [0.3, 0.5]], [[0.6, 0.0], [-0.4, 0.9]]], dtype=F64)
LINE = torch.tensor([[1.0, 0.5], [-0.7, 0.9]], dtype=F64)


def wave(z):
    return torch.sin((z * LINE).sum((-1, -2)))


def test_normal_vectors_side_by_side():
    """Two vectors that a cost couples: the Hessian between them has no part in the gradient of either covariance."""
    q = Independent(MultivariateNormal(LOC.expand(3, 2, 2), scale_tril=FACTOR.expand(3, 2, 2, 2)), 1)
    torch.manual_seed(0)
    z = q.sample()
    found = multivariate_normal_derivatives(q, z, CallableObjective(wave, event_dim=2))
    phase = (z * LINE).sum((-1, -2)).reshape(3, 1, 1)
    torch.testing.assert_close(found["loc"], phase.cos() * LINE)
    hessian = -phase.sin().unsqueeze(-1) * LINE.unsqueeze(-1) * LINE.unsqueeze(-2)
    torch.testing.assert_close(found["scale_tril"], (hessian @ FACTOR).tril())


def test_normal_vectors_side_by_side_have_the_mean_of_the_closed_form():
    loc, factor = LOC.clone().requires_grad_(), FACTOR.clone().requires_grad_()
    variance = (factor.mT @ LINE.unsqueeze(-1)).square().sum()
    truth = torch.autograd.grad((loc * LINE).sum().sin() * (-variance / 2).exp(), (loc, factor))
    loc, factor = (p.detach().expand(200_000, *p.shape).clone().requires_grad_() for p in (loc, factor))
    torch.manual_seed(0)
    StochasticBackprop()(Independent(MultivariateNormal(loc, scale_tril=factor), 1), wave).sum().backward()
    moments = Moments({"loc": truth[0], "scale_tril": truth[1].tril()})
    moments.add({"loc": loc.grad, "scale_tril": factor.grad.tril()})
    Report().unbiased("vectors", "two coupled normals", moments)


@pytest.mark.parametrize(
    ("family", "parameters", "rate"),
    [
        (Gamma, (2.0, 1.0), 1.0),
        (Gamma, (2.0, 1.0), 2.0),
        (Laplace, (0.0, 0.8), -1.5),
        (NegativeBinomial, (2.0, 0.6), 0.6),
    ],
)
@pytest.mark.parametrize("estimator", [StochasticBackprop(), StochasticBackprop("series", 2)])
def test_infinite_expectations_are_refused(family, parameters, rate, estimator):
    """The gradient of the cumulant generating function is a finite number out there, which means nothing."""
    leaves = [torch.full((2,), p, dtype=F64, requires_grad=True) for p in parameters]
    with pytest.raises(ValueError, match="not finite for some z"):
        estimator(Independent(family(*leaves), 1), ExponentialCost(rate))
    estimator(Independent(family(*leaves), 1), ExponentialCost(rate / 4)).backward()
    assert all(p.grad.isfinite().all() for p in leaves)


@pytest.mark.parametrize(
    ("cumulant", "names"),
    [
        (gamma_cumulant, ("concentration", "rate")),
        (laplace_cumulant, ("loc", "scale")),
        (normal_cumulant, ("loc", "scale")),
        (negative_binomial_cumulant, ("total_count", "logits")),
    ],
)
def test_coefficients_of_parameters_that_repeat(cumulant, names):
    """Worked out once for each parameter, however many samples there are of it, and the same numbers."""
    torch.manual_seed(0)
    first, second = (torch.rand(4, 3, dtype=F64) + 0.5 for _ in range(2))
    worked_on = []

    def watched(parameters, t):
        worked_on.append({name: p.shape for name, p in parameters.items()})
        return cumulant(parameters, t)

    cases = {
        "both, over samples": [p.expand(5, 4, 3) for p in (first, second)],
        "both, over samples and an axis within": [first[:, :1].expand(5, 4, 3), second[:, :1].expand(5, 4, 3)],
        "one of two": [first[:1].expand(4, 3), second],
        "of no samples": [p.expand(0, 4, 3) for p in (first, second)],
    }
    for parameters in cases.values():
        found = series_coefficients(watched, dict(zip(names, parameters, strict=True)), 4)
        copies = {name: p.contiguous() for name, p in zip(names, parameters, strict=True)}
        for name, expected in series_coefficients(cumulant, copies, 4).items():
            assert [a.shape for a in found[name]] == [parameters[0].shape] * 4
            torch.testing.assert_close(found[name], expected, rtol=1e-14, atol=0)
    assert [tuple(shapes[names[1]]) for shapes in worked_on] == [(1, 4, 3), (1, 4, 1), (4, 3), (0, 4, 3)]


def test_samples_share_coefficients():
    """Where it matters: several samples of one distribution, and the gradient is the mean of that of each."""
    rate = torch.tensor([[0.8, 2.0]], dtype=F64, requires_grad=True)
    torch.manual_seed(0)
    cost = SquaredCost(0.49)
    seen = []

    def f(z):
        seen.append(z)
        return cost(z)

    StochasticBackprop("series", 2, num_samples=7)(
        Independent(Gamma(torch.full_like(rate, 1.5), rate), 1), f
    ).backward()
    z = seen[0].detach()
    scale = 1 / rate.detach()
    by_scale = 1.5 * (2 * (z - 0.49) + 2 * scale)
    torch.testing.assert_close(rate.grad, (-(scale**2) * by_scale).mean(0))


@pytest.mark.parametrize("family", ["gamma", "beta", "dirichlet"])
@pytest.mark.parametrize("outer", [REBAR, lambda: RelaxedREBAR(Surrogate(hidden=[3], activation="tanh"))])
def test_implicit_samples_inside_a_control_variate_that_learns(family, outer):
    """Its temperature asks for the derivative of the gradient of the cost, which implicit derivatives have not."""
    torch.manual_seed(0)
    logits, shape = torch.randn(64, 2, requires_grad=True), torch.full((64,), 1.3, requires_grad=True)
    estimator = outer()

    def f(b):
        a = shape * (1 + b[..., 0])
        if family == "gamma":
            return Pathwise()(Gamma(a, 1 + b[..., 1]), lambda z: z.square())
        if family == "beta":
            return Pathwise()(Beta(a, 1 + b[..., 1]), lambda z: z.square())
        return Pathwise()(Dirichlet(torch.stack([a, 1 + b[..., 1]], -1)), lambda z: z[..., 0].square())

    estimator(Independent(Bernoulli(logits=logits), 1), f).sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in (logits, shape, *estimator.parameters()))


@pytest.mark.parametrize("samples", [1, 3])
def test_implicit_gradients_are_those_of_torch(samples):
    alpha = torch.tensor([[0.7, 2.0, 1.1]], dtype=F64, requires_grad=True)
    torch.manual_seed(0)
    Pathwise(num_samples=samples)(Dirichlet(alpha), lambda z: z[..., 0].sin() * z[..., 1]).sum().backward()
    torch.manual_seed(0)
    z = Dirichlet(alpha.expand(samples, 1, 3)).rsample()
    (expected,) = torch.autograd.grad((z[..., 0].sin() * z[..., 1]).mean(0).sum(), alpha)
    torch.testing.assert_close(alpha.grad, expected)
