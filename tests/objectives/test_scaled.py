import math

import pytest
import torch

from lightning_estimators.objectives import (
    BernoulliLinear,
    CallableObjective,
    ExponentialCost,
    Scaled,
    Separable,
    SquaredCost,
    Sum,
)

from .brute_force import bits, brute_force, one_hot


def wavy(z):
    return z.flatten(-2).cumsum(-1).sin().sum(-1)


def linear(event_dim, entries):
    weight, target = torch.randn(6, entries, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    return BernoulliLinear(weight, None, target, event_dim)


@pytest.mark.parametrize("inner", [linear(2, 6), wavy], ids=["objective", "callable"])
def test_scalar_change_slope_and_derivatives_are_those_of_the_product(inner):
    torch.manual_seed(0)
    f = Scaled(inner, -2.5, event_dim=2)
    z = bits(3, 5, 2, 3)
    torch.testing.assert_close(f(z), -2.5 * inner(z))
    torch.testing.assert_close(f.coordinate_change(z, 1 - z), brute_force(f, z, 1 - z, 2), rtol=0, atol=1e-10)
    plain = CallableObjective(f.value, event_dim=2)
    torch.testing.assert_close(f.coordinate_slope(z, z + 0.3), plain.coordinate_slope(z, z + 0.3))
    for order in (1, 2, 3):
        torch.testing.assert_close(f.coordinate_derivative(z, order), plain.coordinate_derivative(z, order))
    assert f.is_differentiable(z)


def test_one_hot_change_is_the_difference():
    torch.manual_seed(0)
    f = Scaled(linear(2, 12), 0.3)
    z, z_new = one_hot(3, 5, 4, 3)
    torch.testing.assert_close(f.coordinate_change(z, z_new), brute_force(f, z, z_new, 2), rtol=0, atol=1e-10)


def test_structure_is_that_of_the_cost():
    z = torch.randn(4, 3)
    assert Scaled(SquaredCost(torch.zeros(3)), 2.0).degree == 2
    assert Scaled(linear(1, 3), 2.0).closed_derivatives
    assert not Scaled(lambda z: z.sum(-1), 2.0).closed_derivatives
    assert not Scaled(lambda z: z.detach().sum(-1), 2.0).is_differentiable(z)
    assert Scaled(linear(1, 3), 2.0).exponential(z) is None
    exponential = ExponentialCost(torch.full((3,), -0.5))
    rate, value = Scaled(exponential, 3.0).exponential(z)
    inner_rate, inner_value = exponential.exponential(z)
    torch.testing.assert_close(rate, inner_rate)
    torch.testing.assert_close(value, 3.0 * inner_value)


def test_event_dim_comes_from_the_cost():
    assert Scaled(Separable(torch.exp, 2), 1.0).event_dim == 2
    assert Scaled(lambda z: z.sum(-1), 1.0).event_dim == 1
    assert Sum([Scaled(Separable(torch.exp, 2), 1.0), Separable(torch.exp, 2)]).event_dim == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"factor": math.nan}, "finite factor"), ({"factor": 1.0, "event_dim": 3}, "event_dim=2 as Separable has, got 3")],
)
def test_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        Scaled(Separable(torch.exp, 2), **settings)
