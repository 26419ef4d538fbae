import pytest
import torch

from lightning_estimators.objectives import Separable

from .brute_force import LEADS, ONE_HOT_EVENTS, SCALAR_EVENTS, brute_force, one_hot


@pytest.mark.parametrize("lead", LEADS, ids=str)
@pytest.mark.parametrize("event", SCALAR_EVENTS, ids=str)
def test_scalar_change_is_the_difference(event, lead):
    torch.manual_seed(0)
    logits = torch.randn((*lead[-1:], *event), dtype=torch.float64)
    f = Separable(lambda z: (z * logits).exp() + z, len(event))
    z, z_new = torch.randn((*lead, *event), dtype=torch.float64), torch.randn((*lead, *event), dtype=torch.float64)
    change = f.coordinate_change(z, z_new)
    assert change.shape == z.shape
    torch.testing.assert_close(change, brute_force(f, z, z_new, len(event)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("lead", LEADS, ids=str)
@pytest.mark.parametrize("event", ONE_HOT_EVENTS, ids=str)
def test_one_hot_change_is_the_difference(event, lead):
    torch.manual_seed(0)
    logits = torch.randn((*lead[-1:], *event), dtype=torch.float64)
    f = Separable(lambda z: z * logits, len(event))
    z, z_new = one_hot(*lead, *event)
    change = f.coordinate_change(z, z_new)
    assert change.shape == (event[-1] - 1, *lead, *event[:-1])
    torch.testing.assert_close(change, brute_force(f, z, z_new, len(event)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_derivative(order):
    z = torch.randn(5, 2, 3, dtype=torch.float64)
    expected = 0.5**order * (0.5 * z).exp() + (2 * z if order == 1 else 2 * float(order == 2))
    derivative = Separable(lambda z: (0.5 * z).exp() + z**2, 2).coordinate_derivative(z, order)
    torch.testing.assert_close(derivative, expected)


def test_value_is_attached_and_changes_are_not():
    logits = torch.randn(3, requires_grad=True)
    f, z = Separable(lambda z: z * logits), torch.ones(2, 3)
    assert torch.equal(torch.autograd.grad(f(z).sum(), logits)[0], torch.full((3,), 2.0))
    assert not f.coordinate_change(z, 1 - z).requires_grad
    assert not f.coordinate_derivative(z, 1).requires_grad


def test_a_g_that_sums_is_refused():
    with pytest.raises(ValueError, match="Let g not sum"):
        Separable(lambda z: z.sum(-1))(torch.zeros(5, 3))
