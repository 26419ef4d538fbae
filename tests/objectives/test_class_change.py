"""All categories at once: the same changes as one by one, from every objective that can tell."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.distributions import Independent, OneHotCategorical

from lightning_estimators.estimators import StochasticBackprop
from lightning_estimators.objectives import BernoulliLinear, CallableObjective, Scaled, Separable, Sum, compilation
from lightning_estimators.objectives.compilation import compile_choice

from .brute_force import brute_force, one_hot


def linear(event, outputs=20, *, weight_scale=1.0, bias_scale=1.0, dtype=torch.float64):
    torch.manual_seed(0)
    weight = (weight_scale * torch.randn(outputs, *event)).to(dtype)
    bias, target = (bias_scale * torch.randn(outputs)).to(dtype), (torch.rand(outputs) < 0.5).to(dtype)
    return BernoulliLinear(weight, bias, target, len(event))


def objectives(event):
    scores = torch.randn(event, dtype=torch.float64)
    separable = Separable(lambda z: torch.sin(z * scores), len(event))
    yield linear(event)
    yield separable
    yield Scaled(linear(event), -0.7)
    yield Sum([linear(event), separable])
    yield CallableObjective(linear(event), len(event), torch.float64)


@pytest.mark.parametrize("event", [(3,), (4, 3), (2, 2, 5)], ids=str)
def test_changes_are_those_of_brute_force(event):
    z, alternatives = one_hot(5, *event)
    for f in objectives(event):
        change = f.class_change(z)
        expected = brute_force(f, z, alternatives, len(event))
        torch.testing.assert_close((alternatives * change).sum(-1), expected, rtol=0, atol=1e-10)
        torch.testing.assert_close((z * change).sum(-1), torch.zeros(5, *event[:-1]).double(), rtol=0, atol=1e-10)


def test_only_what_can_tell_answers():
    z, _ = one_hot(5, 4, 3)
    black_box = CallableObjective(lambda z: z[..., 0].prod(-1), 2)
    assert black_box.class_change(z) is None
    assert Sum([linear((4, 3)), black_box]).class_change(z) is None
    assert linear((4, 3)).class_change(0.5 * z) is None


@pytest.fixture
def _traced(monkeypatch):
    """Trace as the compiler does, and run what was traced; compiling it for real takes many seconds."""
    made, counter = {}, CompileCounter()
    torch.compiler.reset()
    monkeypatch.setattr(
        compilation, "_compiled", lambda f: made.setdefault(f, torch.compile(f, fullgraph=True, backend=counter))
    )
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_traced")
@pytest.mark.parametrize("bias_scale", [1.0, 100.0])
@pytest.mark.parametrize("weight_scale", [1e-5, 1e-2, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("kind", ["classes", "flips"])
def test_compiled_factors_keep_the_digits_of_single_precision(kind, weight_scale, bias_scale):
    """Tiny moves, saturated logits, and weights so large that no product of factors is finite."""
    event = (7, 5) if kind == "classes" else (20,)
    f = linear(event, 70, weight_scale=weight_scale, bias_scale=bias_scale, dtype=torch.float32)
    exact = BernoulliLinear(f.weight.double(), f.bias.double(), f.target.double(), len(event))
    if bias_scale > 1:  # all logits are saturated on the right side, so that next to nothing changes
        f.target = (f.bias > 0).float()
        exact.target = f.target.double()
    z, new = one_hot(6, *event) if kind == "classes" else (torch.randint(0, 2, (6, *event)).double(), None)
    new = 1 - z if new is None else new
    with compile_choice(False):
        expected = exact.coordinate_change(z, new)
    with compile_choice(True):
        error = f.coordinate_change(z.float(), new.float()).double() - expected
    assert error.abs().max() < 1e-4 * expected.abs().mean()


def test_the_rule_leaves_impossible_classes_out():
    """Also where their logits are minus infinity, and the cost in closed form with them."""
    logits = torch.tensor([[[0.0, 1.0, -torch.inf], [0.0, 0.5, 1.0]]]).requires_grad_()
    f = Sum([linear((2, 3), dtype=torch.float32), Separable(lambda z: z * logits.detach().exp(), 2)])
    black_box = CallableObjective(lambda z: f(z), 2)
    gradients = []
    for cost in (f, black_box):
        torch.manual_seed(0)
        loss = StochasticBackprop(num_samples=3)(Independent(OneHotCategorical(logits=logits), 1), cost)
        gradients += torch.autograd.grad(loss.sum(), logits)
    assert gradients[0].isfinite().all()
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)
