import math

import pytest
import torch
from torch.distributions import Normal

from lightning_estimators.objectives import CallableObjective, GaussianLinear

from .brute_force import LEADS, ONE_HOT_EVENTS, SCALAR_EVENTS, brute_force, one_hot


def problem(event, lead, *, outputs=6, scale=0.7, bias=True):
    entries = math.prod(event)
    weight = torch.randn(outputs, entries, dtype=torch.float64)
    target = torch.rand((*lead[-1:], outputs), dtype=torch.float64)
    return GaussianLinear(
        weight, torch.randn(outputs, dtype=torch.float64) if bias else None, target, scale, len(event)
    )


def plain(f):
    """The same cost without its structure."""
    return CallableObjective(f.value, f.event_dim)


@pytest.mark.parametrize("bias", [True, False])
def test_value_and_its_gradient_are_those_of_the_likelihood(bias):
    weight = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    c = torch.randn(6, dtype=torch.float64, requires_grad=True) if bias else None
    target, z = torch.rand(5, 6, dtype=torch.float64), torch.randn(3, 5, 2, 3, dtype=torch.float64)
    value = GaussianLinear(weight, c, target, 0.3, event_dim=2)(z)
    means = torch.einsum("pij,...ij->...p", weight, z) + (0 if c is None else c)
    expected = -Normal(means, 0.3).log_prob(target).sum(-1)
    torch.testing.assert_close(value, expected)
    attached = (weight,) if c is None else (weight, c)
    got = torch.autograd.grad(value.sum(), attached)
    torch.testing.assert_close(got, torch.autograd.grad(expected.sum(), attached))


@pytest.mark.parametrize("lead", LEADS, ids=str)
@pytest.mark.parametrize("event", SCALAR_EVENTS, ids=str)
def test_scalar_changes_and_slopes_are_those_of_brute_force(event, lead):
    f = problem(event, lead)
    z, z_new = torch.randn(2, *lead, *event, dtype=torch.float64)
    change, slope = f.coordinate_change(z, z_new), f.coordinate_slope(z, z_new)
    assert change.shape == slope.shape == z.shape
    torch.testing.assert_close(change, brute_force(f, z, z_new, len(event)))
    torch.testing.assert_close(slope, plain(f).coordinate_slope(z, z_new))


@pytest.mark.parametrize("lead", LEADS, ids=str)
@pytest.mark.parametrize("event", ONE_HOT_EVENTS, ids=str)
def test_vector_changes_and_slopes_are_those_of_brute_force(event, lead):
    f = problem(event, lead)
    z, z_new = one_hot(*lead, *event)
    z, z_new = z + torch.randn_like(z), z_new + torch.randn_like(z_new)  # anywhere, not only at corners
    direction = torch.randn(event[-1], *lead, *event, dtype=torch.float64)[: len(z_new)]
    change, slope = f.coordinate_change(z, z_new), f.coordinate_slope(z, z_new, direction)
    assert change.shape == slope.shape == (event[-1] - 1, *lead, *event[:-1])
    torch.testing.assert_close(change, brute_force(f, z, z_new, len(event)))
    torch.testing.assert_close(slope, plain(f).coordinate_slope(z, z_new, direction))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("lead", LEADS, ids=str)
@pytest.mark.parametrize("event", SCALAR_EVENTS, ids=str)
def test_derivatives_are_those_of_autograd(event, lead, order):
    f = problem(event, lead)
    z = torch.randn((*lead, *event), dtype=torch.float64)
    derivative = f.coordinate_derivative(z, order)
    assert derivative.shape == z.shape
    torch.testing.assert_close(derivative, plain(f).coordinate_derivative(z, order))
    assert (order > f.degree) == bool((derivative == 0).all())


def test_knows_what_ends_the_series():
    f = problem((4,), (5,))
    assert (f.degree, f.closed_derivatives, f.is_differentiable(torch.zeros(5, 4))) == (2, True, True)


def test_no_graph_is_built():
    weight = torch.randn(6, 4, requires_grad=True)
    f = GaussianLinear(weight, None, torch.rand(6))
    z = torch.randn(5, 4)
    answers = f.coordinate_change(z, 1 - z), f.coordinate_slope(z, 1 - z), f.coordinate_derivative(z, 2)
    assert not any(answer.requires_grad for answer in answers)


def test_half_precision_weights_are_differenced_in_float32():
    f = problem((20,), (5,), outputs=30)
    half = GaussianLinear(f.weight.bfloat16(), f.bias.bfloat16(), f.target.float(), f.scale)
    exact = GaussianLinear(half.weight.double(), half.bias.double(), half.target.double(), f.scale)
    z, z_new = torch.randn(2, 5, 20)
    expected = exact.coordinate_change(z.double(), z_new.double())
    error = half.coordinate_change(z, z_new).double() - expected
    assert error.abs().max() < 1e-5 * expected.abs().mean()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianLinear(torch.zeros(3, 2), torch.zeros(2), torch.zeros(3)), "weight of shape"),
        (lambda: GaussianLinear(torch.zeros(3, 2), None, torch.zeros(5, 1, 28, 28)), "target of shape"),
        (lambda: GaussianLinear(torch.zeros(3, 2), None, torch.zeros(3), scale=0.0), "positive scale"),
        (lambda: GaussianLinear(torch.zeros(3, 2), None, torch.zeros(3), scale=math.nan), "positive scale"),
        (lambda: GaussianLinear(torch.zeros(3, 2), None, torch.zeros(3))(torch.zeros(5, 4)), "event of 2 entries"),
        (
            lambda: GaussianLinear(torch.zeros(3, 2), None, torch.zeros(3)).coordinate_derivative(torch.zeros(2), 0),
            "at least 1",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
