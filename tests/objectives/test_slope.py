"""coordinate_slope of every objective against automatic differentiation, one moved point at a time."""

import itertools
import math

import pytest
import torch

from lightning_estimators.distributions import Delta
from lightning_estimators.estimators import REINFORCE, Enumeration, Pathwise, StochasticBackprop
from lightning_estimators.objectives import (
    BernoulliLinear,
    CallableObjective,
    ExponentialCost,
    FirstLayerLinear,
    Separable,
    SquaredCost,
    Sum,
)
from lightning_estimators.objectives.derivatives import NotTwiceDifferentiableError

from .brute_force import LEADS, SCALAR_EVENTS

F64 = torch.float64
VECTOR_EVENTS = [(3,), (2, 3)]


def linear(event):
    d = math.prod(event)
    return torch.randn(5, d, dtype=F64), torch.randn(5, dtype=F64)


def callable_objective(event):
    weight, bias = linear(event)

    def f(z):
        h = z.reshape(*z.shape[: z.ndim - len(event)], -1) @ weight.T + bias
        return h.sin().sum(-1) + h[..., 0] * h[..., 1]

    return CallableObjective(f, len(event))


def bernoulli_linear(event):
    return BernoulliLinear(*linear(event), torch.rand(5, dtype=F64), len(event))


def first_layer_linear(event):
    return FirstLayerLinear(*linear(event), lambda h: h.tanh().square().sum(-1) + h[..., 0] * h[..., 1], len(event))


def separable(event):
    scale = torch.rand(event, dtype=F64)
    return Separable(lambda z: (z * scale).sin() + z**2, len(event))


OBJECTIVES = {
    "callable": callable_objective,
    "bernoulli_linear": bernoulli_linear,
    "first_layer_linear": first_layer_linear,
    "separable": separable,
    "squared": lambda event: SquaredCost(torch.rand(event, dtype=F64), len(event)),
    "exponential": lambda event: ExponentialCost(torch.rand(event, dtype=F64) - 0.5, len(event)),
    "sum": lambda event: Sum([separable(event), callable_objective(event), bernoulli_linear(event)]),
    "cast": lambda event: CallableObjective(separable(event), len(event), dtype=F64),
}


def brute_force(f, z, z_new, event_dim, direction=None):
    """The derivative at z with one coordinate moved, by a loop over coordinates."""
    if direction is not None:
        pairs = zip(z_new, direction.expand(z_new.shape), strict=True)
        return torch.stack([_one(f, z, new, event_dim, 1, along) for new, along in pairs])
    return _one(f, z, z_new, event_dim, 0, torch.ones_like(z))


def _one(f, z, new, event_dim, entry_dims, along):
    lead = z.ndim - event_dim
    coords = z.shape[lead : z.ndim - entry_dims]
    out = z.new_zeros((*z.shape[:lead], *coords))
    for j in itertools.product(*map(range, coords)):
        at = (slice(None),) * lead + j
        moved = z.clone()
        moved[at] = new[at]
        leaf = moved.requires_grad_()
        gradient = torch.autograd.grad(f.value(leaf).sum(), leaf)[0] * along
        out[at] = gradient[at].sum(-1) if entry_dims else gradient[at]
    return out


@pytest.mark.parametrize("chunk_bytes", [None, 1, 1000])
@pytest.mark.parametrize("lead", LEADS, ids=str)
@pytest.mark.parametrize("event", SCALAR_EVENTS, ids=str)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_scalar_slope_is_the_derivative(name, event, lead, chunk_bytes):
    f = OBJECTIVES[name](event)
    f.chunk_bytes = chunk_bytes
    z, z_new = torch.randn((*lead, *event), dtype=F64), torch.randn((*lead, *event), dtype=F64)
    slope = f.coordinate_slope(z, z_new)
    assert slope.shape == z.shape
    assert not slope.requires_grad
    torch.testing.assert_close(slope, brute_force(f, z, z_new, len(event)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk_bytes", [None, 1])
@pytest.mark.parametrize("lead", LEADS, ids=str)
@pytest.mark.parametrize("event", VECTOR_EVENTS, ids=str)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_vector_slope_is_the_derivative_in_a_direction(name, event, lead, chunk_bytes):
    f = OBJECTIVES[name](event)
    f.chunk_bytes = chunk_bytes
    z, z_new = torch.randn((*lead, *event), dtype=F64), torch.randn((4, *lead, *event), dtype=F64)
    direction = torch.randn((4, *lead, *event), dtype=F64)
    slope = f.coordinate_slope(z, z_new, direction)
    assert slope.shape == (4, *lead, *event[:-1])
    torch.testing.assert_close(slope, brute_force(f, z, z_new, len(event), direction), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_directions_belong_to_vectors(name):
    f, z = OBJECTIVES[name]((3,)), torch.randn(5, 3, dtype=F64)
    with pytest.raises(ValueError, match="takes a direction for vector coordinates"):
        f.coordinate_slope(z, z.expand(2, 5, 3))
    with pytest.raises(ValueError, match="and none for scalars"):
        f.coordinate_slope(z, z, torch.ones(5, 3, dtype=F64))


@pytest.mark.parametrize("order", range(1, 5))
@pytest.mark.parametrize("name", ["squared", "exponential", "cast"])
def test_derivatives_of_the_toy_costs(name, order):
    f, z = OBJECTIVES[name]((2, 3)), torch.randn(5, 2, 3, dtype=F64)
    expected = CallableObjective(f.value, 2).coordinate_derivative(z, order)
    torch.testing.assert_close(f.coordinate_derivative(z, order), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("event", SCALAR_EVENTS, ids=str)
@pytest.mark.parametrize("name", ["squared", "exponential"])
def test_changes_of_the_toy_costs(name, event):
    f, z, z_new = OBJECTIVES[name](event), torch.randn(5, *event, dtype=F64), torch.randn(5, *event, dtype=F64)
    expected = CallableObjective(f.value, len(event)).coordinate_change(z, z_new)
    torch.testing.assert_close(f.coordinate_change(z, z_new), expected, rtol=1e-9, atol=1e-9)
    if event:
        vectors = torch.randn(4, 5, *event, dtype=F64)
        expected = CallableObjective(f.value, len(event)).coordinate_change(z, vectors)
        torch.testing.assert_close(f.coordinate_change(z, vectors), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_smooth_costs_are_differentiable(name):
    assert OBJECTIVES[name]((3,)).is_differentiable(torch.randn(5, 3, dtype=F64))


def test_black_boxes_are_not_differentiable():
    z = torch.randn(5, 3)
    scale = torch.ones((), requires_grad=True)  # a gradient, but not in z
    box = CallableObjective(lambda z: scale * (z.detach() > 0).sum(-1))
    assert not box.is_differentiable(z)
    assert not CallableObjective(lambda z: (z > 0).float().sum(-1)).is_differentiable(z)
    assert not Sum([Separable(torch.exp), box]).is_differentiable(z)
    assert not CallableObjective(box, dtype=F64).is_differentiable(z)


def test_a_cast_keeps_what_the_objective_knows():
    squared, exponential = SquaredCost(1.0), ExponentialCost(-0.5)
    z = torch.rand(5, 3)
    assert CallableObjective(squared, dtype=torch.bfloat16).degree == 2
    assert CallableObjective(squared, dtype=torch.bfloat16).closed_derivatives
    rate, value = CallableObjective(exponential, dtype=F64).exponential(z)
    torch.testing.assert_close(value, torch.exp(-0.5 * z.double()))
    assert rate == -0.5
    assert CallableObjective(squared, dtype=F64).exponential(z) is None


def test_degrees_add_up():
    assert Sum([SquaredCost(1.0), SquaredCost(2.0)]).degree == 2
    assert Sum([SquaredCost(1.0), ExponentialCost(1.0)]).degree is None
    assert Sum([SquaredCost(1.0), ExponentialCost(1.0)]).closed_derivatives
    assert not Sum([SquaredCost(1.0), lambda z: z.sum(-1)]).closed_derivatives


@pytest.mark.parametrize("inner", [REINFORCE, StochasticBackprop])
def test_an_estimate_is_not_differentiated_twice(inner):
    estimator = inner()
    f = CallableObjective(lambda z: estimator(torch.distributions.Bernoulli(logits=z), lambda b: b), event_dim=0)
    z = torch.randn(5)
    assert (f.coordinate_derivative(z, 1) != 0).any()
    with pytest.raises(NotTwiceDifferentiableError, match=inner.__name__):
        f.coordinate_derivative(z, 2)


def test_an_implicit_derivative_is_not_differentiated_twice():
    f = CallableObjective(lambda z: Pathwise()(torch.distributions.Gamma(z.exp(), 1.0), torch.sin), event_dim=0)
    with pytest.raises(NotTwiceDifferentiableError, match="Pathwise"):
        f.coordinate_derivative(torch.randn(5), 2)


def test_explicit_samples_and_sums_are_differentiated_twice():
    z = torch.randn(5, dtype=F64)
    p = z.sigmoid()
    f = CallableObjective(lambda z: Enumeration()(torch.distributions.Bernoulli(logits=z), lambda b: b), event_dim=0)
    torch.testing.assert_close(f.coordinate_derivative(z, 2), p * (1 - p) * (1 - 2 * p))
    f = CallableObjective(lambda z: StochasticBackprop()(Delta(z**2), torch.sin), event_dim=0)
    torch.testing.assert_close(f.coordinate_derivative(z, 2), 2 * torch.cos(z**2) - 4 * z**2 * torch.sin(z**2))
    f = CallableObjective(lambda z: Pathwise()(torch.distributions.Normal(z, 1e-20), torch.sin), event_dim=0)
    torch.testing.assert_close(f.coordinate_derivative(z, 2), -torch.sin(z))
