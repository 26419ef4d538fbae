import pytest
import torch

from lightning_estimators.noise import uniform
from lightning_estimators.objectives import BernoulliLinear, CallableObjective, FirstLayerLinear, Separable, Sum

from .brute_force import bits, brute_force, one_hot


def terms(event_dim, entries):
    weight, bias = torch.randn(6, entries, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    return [
        BernoulliLinear(weight, bias, torch.rand(6, dtype=torch.float64), event_dim),
        lambda z: z.flatten(z.ndim - event_dim).cumsum(-1).sin().sum(-1),
        FirstLayerLinear(weight.sin(), None, lambda h: h.tanh().sum(-1), event_dim),
        Separable(torch.exp, event_dim),
    ]


def test_scalar_change_is_the_difference():
    torch.manual_seed(0)
    f = Sum(terms(2, 6))
    z = bits(3, 5, 2, 3)
    torch.testing.assert_close(f.coordinate_change(z, 1 - z), brute_force(f, z, 1 - z, 2), rtol=0, atol=1e-10)


def test_one_hot_change_is_the_difference():
    torch.manual_seed(0)
    f = Sum(terms(2, 12))
    z, z_new = one_hot(3, 5, 4, 3)
    torch.testing.assert_close(f.coordinate_change(z, z_new), brute_force(f, z, z_new, 2), rtol=0, atol=1e-10)


def test_value_and_derivatives_add():
    torch.manual_seed(0)
    f = Sum(terms(1, 4))
    z = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(f(z), sum(term(z) for term in f.terms))
    for order in (1, 2, 3):
        whole = CallableObjective(f.value).coordinate_derivative(z, order)
        torch.testing.assert_close(f.coordinate_derivative(z, order), whole)


def test_noise_in_a_term_is_common():
    torch.manual_seed(0)
    f = Sum(
        [
            lambda z: uniform(z.shape[:-1], (), dtype=z.dtype, device=z.device),
            Separable(lambda z: z * torch.tensor([0.0, 1.0])),
        ]
    )
    z = torch.zeros(5, 2)
    assert torch.equal(f.coordinate_change(z, 1 - z), torch.tensor([0.0, 1.0]).expand(5, 2))


def test_event_dim_comes_from_the_terms():
    assert Sum([Separable(torch.exp, 2), lambda z: z.sum((-2, -1))]).event_dim == 2
    assert Sum([lambda z: z.sum((-2, -1))], event_dim=2).event_dim == 2
    assert Sum([lambda z: z.sum(-1)]).event_dim == 1


def test_refusals():
    with pytest.raises(ValueError, match=r"one event_dim.*Separable \(term 1\)"):
        Sum([Separable(torch.exp, 1), Separable(torch.exp, 2)])
    with pytest.raises(ValueError, match="event_dim of the sum"):
        Sum([Separable(torch.exp, 1)], event_dim=2)
    with pytest.raises(ValueError, match="at least one"):
        Sum([])
    with pytest.raises(TypeError, match="as entry 1"):
        Sum([torch.exp, torch.zeros(3)])
