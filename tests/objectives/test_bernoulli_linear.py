import math

import pytest
import torch
from torch.nn import functional as F

from lightning_estimators.objectives import BernoulliLinear, CallableObjective
from lightning_estimators.objectives.bernoulli_linear import sigmoid_derivative

from .brute_force import LEADS, ONE_HOT_EVENTS, SCALAR_EVENTS, bits, brute_force, one_hot


def problem(event, lead, *, outputs=6, scale=1.0, bias_scale=1.0, dtype=torch.float64):
    entries = math.prod(event)
    weight = scale * torch.randn(outputs, entries, dtype=torch.float64)
    bias = bias_scale * torch.randn(outputs, dtype=torch.float64)
    target = torch.rand((*lead[-1:], outputs), dtype=torch.float64)
    return BernoulliLinear(weight.to(dtype), bias.to(dtype), target.to(dtype), len(event))


@pytest.mark.parametrize("chunk_bytes", [None, 1])
@pytest.mark.parametrize("move", ["flip", "any", "stay"])
@pytest.mark.parametrize("lead", LEADS, ids=str)
@pytest.mark.parametrize("event", SCALAR_EVENTS, ids=str)
def test_scalar_change_is_the_difference(event, lead, move, chunk_bytes):
    torch.manual_seed(0)
    f = problem(event, lead)
    f.chunk_bytes = chunk_bytes
    z = bits(*lead, *event) if move == "flip" else torch.randn((*lead, *event), dtype=torch.float64)
    z_new = {"flip": 1 - z, "any": torch.randn_like(z), "stay": z}[move]
    change = f.coordinate_change(z, z_new)
    assert change.shape == z.shape
    torch.testing.assert_close(change, brute_force(f, z, z_new, len(event)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("chunk_bytes", [None, 1])
@pytest.mark.parametrize("lead", LEADS, ids=str)
@pytest.mark.parametrize("event", ONE_HOT_EVENTS, ids=str)
def test_one_hot_change_is_the_difference(event, lead, chunk_bytes):
    torch.manual_seed(0)
    f = problem(event, lead)
    f.chunk_bytes = chunk_bytes
    z, z_new = one_hot(*lead, *event)
    change = f.coordinate_change(z, z_new)
    assert change.shape == (event[-1] - 1, *lead, *event[:-1])
    torch.testing.assert_close(change, brute_force(f, z, z_new, len(event)), rtol=0, atol=1e-10)


SCALES = [1e-6, 1e-3, 0.03, 0.3, 1.0, 3.0, 10.0, 80.0, 300.0]


@pytest.mark.parametrize("bias_scale", [0.0, 1.0, 30.0, 300.0])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", ["binary", "any", "one_hot"])
def test_float32_error_is_small_for_any_weights(kind, scale, bias_scale):
    torch.manual_seed(0)
    event, lead = ((12, 3), (7,)) if kind == "one_hot" else ((40,), (7,))
    exact = problem(event, lead, outputs=50, scale=scale, bias_scale=bias_scale)
    # The same numbers in both precisions, so that only the arithmetic differs.
    exact.weight, exact.bias, exact.target = (t.float().double() for t in (exact.weight, exact.bias, exact.target))
    single = BernoulliLinear(exact.weight.float(), exact.bias.float(), exact.target.float(), len(event))
    if kind == "one_hot":
        z, z_new = one_hot(*lead, *event)
    else:
        z = bits(*lead, *event)
        z_new = 1 - z if kind == "binary" else torch.randn_like(z).float().double()
    expected = exact.coordinate_change(z, z_new)
    error = single.coordinate_change(z.float(), z_new.float()).double() - expected
    assert error.abs().max() < 1e-4 * expected.abs().mean()


@pytest.mark.parametrize("outlier", [5.0, 50.0, 500.0])
@pytest.mark.parametrize("kind", ["binary", "one_hot"])
def test_float32_error_is_small_beside_an_outlier(kind, outlier):
    """One huge weight must not cost the others their digits."""
    torch.manual_seed(0)
    event = (12, 3) if kind == "one_hot" else (40,)
    weight = (0.03 * torch.randn(50, math.prod(event))).float()
    weight[3, 5] = outlier
    bias, target = torch.randn(50), torch.rand(7, 50)
    exact = BernoulliLinear(weight.double(), bias.double(), target.double(), len(event))
    single = BernoulliLinear(weight, bias, target, len(event))
    z, z_new = one_hot(7, *event) if kind == "one_hot" else (bits(7, *event), None)
    z_new = 1 - z if z_new is None else z_new
    expected = exact.coordinate_change(z, z_new)
    error = single.coordinate_change(z.float(), z_new.float()).double() - expected
    untouched = torch.arange(expected.shape[-1]) != (5 // 3 if kind == "one_hot" else 5)
    expected, error = expected[..., untouched], error[..., untouched]
    assert error.abs().max() < 1e-4 * expected.abs().mean()


@pytest.mark.parametrize("a", [-1e4, -100.0, -50.0, 0.0, 50.0, 100.0, 1e4])
@pytest.mark.parametrize("w", [-200.0, -80.0, -1.0, -1e-6, 1e-6, 1.0, 80.0, 200.0])
def test_one_output_has_all_its_digits(a, w):
    """No sum over outputs to hide behind: accuracy of a single difference, with x = 0, relative where w is small."""
    f = BernoulliLinear(torch.tensor([[w]]), torch.tensor([a]), torch.zeros(1))
    exact = -F.logsigmoid(-torch.tensor([a + w], dtype=torch.float64)) + F.logsigmoid(
        -torch.tensor([a], dtype=torch.float64)
    )
    change = f.coordinate_change(torch.zeros(1), torch.ones(1)).double()
    torch.testing.assert_close(change, exact, rtol=2e-6 if abs(a) < 60 else 1e-4, atol=1e-12 if abs(w) <= 1 else 1e-7)


def test_value_and_its_gradient_are_those_of_the_likelihood():
    torch.manual_seed(0)
    weight, bias = torch.randn(6, 2, 3, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    weight.requires_grad_(), bias.requires_grad_()
    target = torch.rand(5, 6, dtype=torch.float64)
    z = torch.randn(3, 5, 2, 3, dtype=torch.float64)
    value = BernoulliLinear(weight, bias, target, event_dim=2)(z)
    logits = torch.einsum("pij,...ij->...p", weight, z) + bias
    expected = -torch.distributions.Bernoulli(logits=logits, validate_args=False).log_prob(target).sum(-1)
    torch.testing.assert_close(value, expected)
    got = torch.autograd.grad(value.sum(), (weight, bias))
    for g, e in zip(got, torch.autograd.grad(expected.sum(), (weight, bias)), strict=True):
        torch.testing.assert_close(g, e)


def test_no_graph_is_built():
    weight = torch.randn(6, 4, requires_grad=True)
    f = BernoulliLinear(weight, None, torch.rand(6))
    z = bits(5, 4).float()
    assert not f.coordinate_change(z, 1 - z).requires_grad
    assert not f.coordinate_derivative(z, 2).requires_grad


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("event", SCALAR_EVENTS, ids=str)
def test_derivative_equals_automatic_differentiation(event, order):
    torch.manual_seed(0)
    f = problem(event, (5,))
    z = torch.randn(5, *event, dtype=torch.float64)
    torch.testing.assert_close(
        f.coordinate_derivative(z, order),
        CallableObjective(f.value, len(event)).coordinate_derivative(z, order),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("order", range(1, 13))
def test_sigmoid_derivatives_of_any_order(order):
    """Against the Fourier-like expansion of sigma at a < 0: sum_k (-1)^(k+1) e^(k a), differentiated term by term."""
    a = torch.tensor([-30.0, -8.0, -4.0], dtype=torch.float64)
    k = torch.arange(1, 60, dtype=torch.float64)
    expected = ((-1) ** (k + 1) * k**order * torch.exp(k * a[:, None])).sum(-1)
    torch.testing.assert_close(sigmoid_derivative(a, order), expected, rtol=1e-8, atol=0)
    mirrored = expected if order % 2 else -expected
    torch.testing.assert_close(sigmoid_derivative(-a, order), mirrored, rtol=1e-8, atol=0)


def test_half_precision_weights_are_differenced_in_float32():
    torch.manual_seed(0)
    f = problem((20,), (5,), outputs=30, scale=0.1)
    half = BernoulliLinear(f.weight.bfloat16(), f.bias.bfloat16(), f.target, 1)
    exact = BernoulliLinear(half.weight.double(), half.bias.double(), f.target, 1)
    z = bits(5, 20)
    expected = exact.coordinate_change(z, 1 - z)
    change = half.coordinate_change(z.bfloat16(), 1 - z.bfloat16())
    torch.testing.assert_close(change.double(), expected, rtol=0, atol=1e-5 * expected.abs().mean().item())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        single = BernoulliLinear(f.weight.float(), f.bias.float(), f.target.float(), 1)
        change = single.coordinate_change(z.float(), 1 - z.float())
    expected = f.coordinate_change(z, 1 - z)
    torch.testing.assert_close(change.double(), expected, rtol=0, atol=1e-4 * expected.abs().mean().item())


def test_refusals():
    with pytest.raises(ValueError, match="weight of shape"):
        BernoulliLinear(torch.zeros(3, 2), torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="target of shape"):
        BernoulliLinear(torch.zeros(3, 2), torch.zeros(3), torch.zeros(5, 1, 28, 28))
    with pytest.raises(ValueError, match="event of 2 entries"):
        BernoulliLinear(torch.zeros(3, 2), torch.zeros(3), torch.zeros(3))(torch.zeros(5, 4))
    with pytest.raises(ValueError, match="at least 1"):
        BernoulliLinear(torch.zeros(3, 2), torch.zeros(3), torch.zeros(3)).coordinate_derivative(torch.zeros(2), 0)


@pytest.mark.parametrize("mix", ["z", "z_new", "both", "neither"])
def test_vectors_that_are_no_classes_are_not_taken_for_them(mix):
    torch.manual_seed(0)
    f = problem((4, 3), (5,), outputs=20)
    z, z_new = one_hot(5, 4, 3)
    # One vector among many: entries that sum to 1 as those of a class do.
    if mix in ("z", "both"):
        z[2, 1] = torch.tensor([0.5, 0.25, 0.25])
    if mix in ("z_new", "both"):
        z_new[1, 3, 2] = torch.tensor([-1.0, 1.0, 1.0])
    torch.testing.assert_close(f.coordinate_change(z, z_new), brute_force(f, z, z_new, 2), rtol=0, atol=1e-10)


@pytest.mark.parametrize("move", [1e-3, 1.0, 40.0])
@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1.0, 2.0])
@pytest.mark.parametrize("bias", [0.0, 10.0, 100.0])
@pytest.mark.parametrize(("batch", "latents", "outputs"), [(1, 1, 1), (3, 17, 5), (9, 2, 130)])
def test_single_precision_loses_no_digits(batch, latents, outputs, bias, scale, move):
    """Of the mean |difference|, over weights, moves and saturated logits of any size."""
    torch.manual_seed(batch + latents)
    weight, at = scale * torch.randn(outputs, latents), bias * torch.randn(outputs)
    target, z = torch.rand(outputs), torch.randn(batch, latents)
    z_new = z + move * torch.randn_like(z)
    single = BernoulliLinear(weight, at, target)
    double = BernoulliLinear(weight.double(), at.double(), target.double())
    # What the points themselves are rounded to is not an error of the kernel.
    exact = double.coordinate_change(z.double(), (z_new.double() - z.double()).float().double() + z.double())
    error = (single.coordinate_change(z, z_new).double() - exact).abs().max()
    assert error < 1e-4 * exact.abs().mean()
