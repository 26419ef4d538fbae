import math

import pytest
import torch

from lightning_estimators.noise import uniform
from lightning_estimators.objectives import CallableObjective, FirstLayerLinear

from .brute_force import LEADS, ONE_HOT_EVENTS, SCALAR_EVENTS, bits, brute_force, one_hot


def problem(event, hidden=7):
    weight, bias = torch.randn(hidden, math.prod(event), dtype=torch.float64), torch.randn(hidden, dtype=torch.float64)
    second = torch.randn(4, hidden, dtype=torch.float64)
    return FirstLayerLinear(weight, bias, lambda h: (h.tanh() @ second.T).sin().sum(-1), len(event))


@pytest.mark.parametrize("chunk_bytes", [None, 1, 1000])
@pytest.mark.parametrize("lead", LEADS, ids=str)
@pytest.mark.parametrize("event", SCALAR_EVENTS, ids=str)
def test_scalar_change_is_the_difference(event, lead, chunk_bytes):
    torch.manual_seed(0)
    f = problem(event)
    f.chunk_bytes = chunk_bytes
    z, z_new = torch.randn((*lead, *event), dtype=torch.float64), torch.randn((*lead, *event), dtype=torch.float64)
    change = f.coordinate_change(z, z_new)
    assert change.shape == z.shape
    torch.testing.assert_close(change, brute_force(f, z, z_new, len(event)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("chunk_bytes", [None, 1, 1000])
@pytest.mark.parametrize("lead", LEADS, ids=str)
@pytest.mark.parametrize("event", ONE_HOT_EVENTS, ids=str)
def test_one_hot_change_is_the_difference(event, lead, chunk_bytes):
    torch.manual_seed(0)
    f = problem(event)
    f.chunk_bytes = chunk_bytes
    z, z_new = one_hot(*lead, *event)
    change = f.coordinate_change(z, z_new)
    assert change.shape == (event[-1] - 1, *lead, *event[:-1])
    torch.testing.assert_close(change, brute_force(f, z, z_new, len(event)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("chunk_bytes", [None, 1])
def test_noise_in_the_rest_is_common(chunk_bytes):
    torch.manual_seed(0)
    weight = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]])  # z_1 does not matter
    f = FirstLayerLinear(
        weight, None, lambda h: (h * uniform(h.shape[:-1], (2,), dtype=h.dtype, device=h.device)).sum(-1)
    )
    f.chunk_bytes = chunk_bytes
    z = bits(5, 3).float()
    change = f.coordinate_change(z, 1 - z)
    assert (change[:, 1] == 0).all()
    assert len(change[:, 2].abs().unique()) == 5


def test_rest_sees_changed_points_only_in_chunks_with_a_new_leading_axis():
    shapes = []

    def rest(h):
        shapes.append(tuple(h.shape))
        return h.sum(-1)

    f = FirstLayerLinear(torch.randn(6, 3), torch.randn(6), rest)
    f.chunk_bytes = 2 * 5 * 6 * 4
    z = torch.zeros(5, 3)
    f.coordinate_change(z, 1 - z)
    assert shapes == [(5, 6), (1, 5, 6), (2, 5, 6)]


def test_value_is_attached_and_changes_are_not():
    weight, bias = torch.randn(6, 3, requires_grad=True), torch.randn(6, requires_grad=True)
    f = FirstLayerLinear(weight, bias, lambda h: h.square().sum(-1))
    z = bits(5, 3).float()
    torch.testing.assert_close(
        torch.autograd.grad(f(z).sum(), weight)[0], 2 * ((z @ weight.T + bias).T @ z).detach(), rtol=1e-5, atol=1e-5
    )
    assert not f.coordinate_change(z, 1 - z).requires_grad


@pytest.mark.parametrize("order", [1, 2, 3])
def test_derivative(order):
    torch.manual_seed(0)
    f = problem((4,))
    z = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(
        f.coordinate_derivative(z, order), CallableObjective(f.value).coordinate_derivative(z, order)
    )


def test_refusals():
    with pytest.raises(ValueError, match="weight of shape"):
        FirstLayerLinear(torch.zeros(3, 2), torch.zeros(2), lambda h: h.sum(-1))
    with pytest.raises(ValueError, match="event of 2 entries"):
        FirstLayerLinear(torch.zeros(3, 2), None, lambda h: h.sum(-1))(torch.zeros(5, 4))
    with pytest.raises(ValueError, match="f must map"):
        FirstLayerLinear(torch.zeros(3, 2), None, lambda h: h)(torch.zeros(5, 2))
