import math

import pytest
import torch
from torch.nn import functional as F

from lightning_estimators.noise import uniform
from lightning_estimators.objectives import (
    CallableObjective,
    FirstLayerLinear,
    Objective,
    Separable,
    as_objective,
)

from .brute_force import LEADS, ONE_HOT_EVENTS, SCALAR_EVENTS, bits, brute_force, one_hot


def interacting(event_dim):
    """A cost in which every coordinate interacts with every other."""

    def f(z):
        flat = z.reshape(*z.shape[: z.ndim - event_dim], -1)
        steps = torch.arange(1.0, flat.shape[-1] + 1, dtype=z.dtype)
        return (flat * steps.sqrt()).sum(-1).sin() + (1 + flat * steps.cos()).prod(-1)

    return f


@pytest.mark.parametrize("chunk_bytes", [None, 1, 1000])
@pytest.mark.parametrize("lead", LEADS, ids=str)
@pytest.mark.parametrize("event", SCALAR_EVENTS, ids=str)
def test_scalar_change_is_the_difference(event, lead, chunk_bytes):
    torch.manual_seed(0)
    f = CallableObjective(interacting(len(event)), len(event))
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
    f = CallableObjective(interacting(len(event)), len(event))
    f.chunk_bytes = chunk_bytes
    z, z_new = one_hot(*lead, *event)
    change = f.coordinate_change(z, z_new)
    assert change.shape == (event[-1] - 1, *lead, *event[:-1])
    torch.testing.assert_close(change, brute_force(f, z, z_new, len(event)), rtol=0, atol=1e-10)


def test_one_point_per_chunk_and_f_of_z_once():
    calls = []

    def f(z):
        calls.append(tuple(z.shape))
        return z.sum(-1)

    objective = CallableObjective(f)
    objective.chunk_bytes = 1
    z = bits(5, 4)
    objective.coordinate_change(z, 1 - z)
    assert calls == [(5, 4)] + [(1, 5, 4)] * 4
    calls.clear()
    objective.chunk_bytes = 3 * z.numel() * 8
    objective.coordinate_change(z, 1 - z)
    assert calls == [(5, 4), (1, 5, 4), (3, 5, 4)]


def test_no_graph_is_built():
    w = torch.ones(3, requires_grad=True)
    f = CallableObjective(lambda z: (z * w).sum(-1))
    assert not f.coordinate_change(torch.ones(2, 3), torch.zeros(2, 3)).requires_grad
    assert not f.coordinate_derivative(torch.ones(2, 3), 1).requires_grad


@pytest.mark.parametrize("chunk_bytes", [None, 1])
def test_noise_inside_f_is_common_to_all_points(chunk_bytes):
    torch.manual_seed(0)

    def f(z):
        noise = uniform(z.shape[:-1], (2,), dtype=z.dtype, device=z.device)
        return noise.sum(-1) + z[..., 0] * noise[..., 1]

    objective = CallableObjective(f)
    objective.chunk_bytes = chunk_bytes
    z = torch.zeros(5, 3)
    change = objective.coordinate_change(z, z + 1)
    assert (change[:, 1:] == 0).all()  # z_1 and z_2 do not matter, so the noise must cancel exactly
    assert len(change[:, 0].unique()) == 5  # while every batch element keeps its own


def logistic(order, weight, bias, target):
    """Derivatives of softplus(a) - x a, a = w z + c, from the closed forms of the derivatives of the logistic."""

    def of(z):
        s = torch.sigmoid(weight * z + bias)
        q = {
            1: lambda s: s - target,
            2: lambda s: s * (1 - s),
            3: lambda s: s * (1 - s) * (1 - 2 * s),
            4: lambda s: s * (1 - s) * (1 - 6 * s + 6 * s**2),
            5: lambda s: s * (1 - s) * (1 - 2 * s) * (1 - 12 * s + 12 * s**2),
            6: lambda s: s * (1 - s) * (1 - 30 * s + 150 * s**2 - 240 * s**3 + 120 * s**4),
            7: lambda s: s * (1 - s) * (1 - 2 * s) * (1 - 60 * s + 420 * s**2 - 720 * s**3 + 360 * s**4),
            8: lambda s: (
                s * (1 - s) * (1 - 126 * s + 1806 * s**2 - 8400 * s**3 + 16800 * s**4 - 15120 * s**5 + 5040 * s**6)
            ),
        }[order]
        return q(s) * weight**order

    return of


@pytest.mark.parametrize("chunk_bytes", [None, 1])
@pytest.mark.parametrize("order", range(1, 9))
def test_derivatives_up_to_order_eight(order, chunk_bytes):
    torch.manual_seed(order)
    weight, bias = torch.tensor([0.7, -1.3], dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    z = torch.randn(3, 2, dtype=torch.float64)
    # The coordinates are coupled, so that mixed derivatives would show (not by `prod`, whose gradient divides).

    def cost(z):
        a = z * weight + bias
        return (-F.logsigmoid(-a) - 0.3 * a).sum(-1) + z[..., 0] * z[..., 1]

    f = CallableObjective(cost)
    f.chunk_bytes = chunk_bytes
    expected = logistic(order, weight, bias, 0.3)(z) + (z.flip(-1) if order == 1 else 0)
    torch.testing.assert_close(f.coordinate_derivative(z, order), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("lead", LEADS, ids=str)
@pytest.mark.parametrize("event", SCALAR_EVENTS, ids=str)
@pytest.mark.parametrize("order", [1, 2])
def test_derivative_shapes(event, lead, order):
    z = torch.full((*lead, *event), 2.0)
    f = CallableObjective(lambda z: z.reshape(*lead_of(z, len(event)), -1).pow(3).sum(-1), len(event))
    torch.testing.assert_close(f.coordinate_derivative(z, order), torch.full_like(z, {1: 12.0, 2: 12.0}[order]))


def lead_of(z, event_dim):
    return z.shape[: z.ndim - event_dim]


def test_derivative_of_a_constant_is_zero():
    z = torch.ones(2, 3)
    for order in (1, 2, 3):
        assert (CallableObjective(lambda z: z.new_zeros(z.shape[:-1])).coordinate_derivative(z, order) == 0).all()
        assert (CallableObjective(lambda z: z.sum(-1)).coordinate_derivative(z, order) == float(order == 1)).all()


def test_infinite_values_do_not_hide():
    f = CallableObjective(lambda z: torch.where(z[..., 0] > 0, math.inf, 0.0))
    assert f.coordinate_change(torch.zeros(2), torch.ones(2))[0] == math.inf


def test_refusals():
    f = CallableObjective(lambda z: z.sum(-1))
    with pytest.raises(ValueError, match="expects z_new"):
        f.coordinate_change(torch.zeros(5, 3), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="expects z_new"):
        f.coordinate_change(torch.zeros(5, 3), torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match="at least 1"):
        f.coordinate_derivative(torch.zeros(5, 3), 0)
    with pytest.raises(ValueError, match="f must map"):
        CallableObjective(lambda z: z)(torch.zeros(5, 3))


def test_as_objective_keeps_structure_under_a_cast():
    class Counting(Objective):
        event_dim = 1

        def value(self, z):
            return z.sum(-1)

        def coordinate_change(self, z, z_new):
            assert z.dtype == z_new.dtype == torch.bfloat16
            return torch.full_like(z, 7.0)

    f = Counting()
    assert as_objective(f, 1) is f
    cast = as_objective(f, 1, torch.bfloat16)
    assert cast(torch.ones(2, 3)).dtype == torch.bfloat16
    assert (cast.coordinate_change(torch.zeros(2, 3), torch.ones(2, 3)) == 7).all()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
@pytest.mark.parametrize("kind", ["callable", "network", "separable"])
def test_changes_of_costs_that_are_whole_or_truth_values(kind, dtype):
    """Differences of such would wrap around at 0, or not exist."""
    z = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    f = {
        "callable": CallableObjective(lambda z: (z.sum(-1) > 1.5).to(dtype)),
        "network": FirstLayerLinear(torch.ones(1, 3, dtype=z.dtype), None, lambda h: (h.sum(-1) > 1.5).to(dtype)),
        "separable": Separable(lambda z: (z > 0.5).to(dtype)),
    }[kind]
    expected = {"separable": [[-1.0, 1.0, -1.0], [-1.0, -1.0, -1.0]]}.get(kind, [[-1.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    assert f(z).tolist() == ([2.0, 3.0] if kind == "separable" else [1.0, 1.0])
    assert f(z).dtype == torch.float64
    change = f.coordinate_change(z, 1 - z)
    assert change.dtype == torch.float64
    assert change.tolist() == expected


@pytest.mark.parametrize(
    ("question", "share"), [("coordinate_change", 1), ("coordinate_slope", 3), ("coordinate_derivative", 4)]
)
def test_what_comes_after_incomplete_chunks_is_new(question, share):
    """A cost that draws noise of its own for every point must not leave some of it to what is drawn next."""
    drawn = []

    def f(z):
        drawn.append(torch.rand(z.shape[:-1], dtype=z.dtype))
        return (z.square().sum(-1) - drawn[-1]).square()

    objective, z = CallableObjective(f), torch.randn(10, 5, dtype=torch.float64)
    objective.chunk_bytes = 3 * share * z.numel() * z.element_size()
    getattr(objective, question)(z, 2 if question == "coordinate_derivative" else z + 1)
    assert {len(u) for u in drawn if u.ndim == 2} == {2, 3}
    assert not torch.isin(torch.rand(1000, dtype=torch.float64), torch.cat([u.flatten() for u in drawn])).any()
