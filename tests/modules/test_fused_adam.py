"""Adam's fused kernel: the default where it works, the same steps, and never a gradient out of order."""

import functools

import pytest
import torch
from torch.optim import SGD, Adam, AdamW

from lightning_estimators.chained_optimizer import ChainedOptimizer
from lightning_estimators.estimators import REINFORCE
from lightning_estimators.modules.fused_adam import fused_where_possible

from .tiny import Tiny


def stepped(optimizer_class, layout, *, fused, assigned=None):
    """Three steps of one matrix whose memory, and whose gradients' memory, are laid out in some way."""
    torch.manual_seed(0)
    entries = torch.randn(6, 40)
    weight = torch.nn.Parameter(entries.clone() if layout == "rows" else entries.t().contiguous().t())
    optimizer = optimizer_class([weight], lr=0.1, weight_decay=0.01)
    if fused:
        fused_where_possible(optimizer)
    chained = ChainedOptimizer(model=optimizer)
    for _ in range(3):
        gradient = torch.randn(6, 40)
        if assigned == "transposed":
            gradient = gradient.t().contiguous().t()
        elif assigned == "expanded":
            gradient = gradient[:, :1].expand(6, 40)
        weight.grad = gradient
        chained.step()
    return weight.detach(), optimizer.param_groups[0]["fused"]


@pytest.mark.parametrize("optimizer_class", [Adam, AdamW])
@pytest.mark.parametrize("assigned", [None, "transposed", "expanded"])
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_steps_are_the_same_however_memory_is_laid_out(optimizer_class, assigned, layout):
    expected, _ = stepped(optimizer_class, layout, fused=False, assigned=assigned)
    weight, fused = stepped(optimizer_class, layout, fused=True, assigned=assigned)
    torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)
    assert bool(fused) == (layout == "rows")


def test_modules_step_by_it_unless_told_otherwise():
    def settings(**given):
        (optimizer,), _ = Tiny(REINFORCE(), optimizer=functools.partial(Adam, lr=0.1, **given)).configure_optimizers()
        (group,) = optimizer.parts["model"].param_groups
        return group["fused"], group["foreach"]

    assert settings() == (True, None)
    assert settings(fused=False) == (False, None)
    assert settings(foreach=True) == (None, True)
    assert settings(capturable=True)[0] is None


def test_what_it_cannot_do_is_left_alone():
    strided = torch.nn.Parameter(torch.randn(4, 6)[:, ::2])
    for parameter in (strided, torch.nn.Parameter(torch.randn(3, dtype=torch.complex64))):
        optimizer = Adam([parameter])
        fused_where_possible(optimizer)
        assert optimizer.param_groups[0]["fused"] is None
    sgd = SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    fused_where_possible(sgd)
    assert sgd.param_groups[0]["fused"] is None


@pytest.mark.parametrize("saved_fused", [True, False])
def test_states_are_exchanged_with_plain_adam(saved_fused):
    def made(*, fused):
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = Adam([weight], lr=0.1)
        if fused:
            fused_where_possible(optimizer)
        return weight, optimizer

    def step(weight, optimizer):
        weight.grad = torch.tensor([1.0, -2.0, 1e-8])
        optimizer.step()

    (first, saved), (second, resumed) = made(fused=saved_fused), made(fused=not saved_fused)
    step(first, saved)
    resumed.load_state_dict(saved.state_dict())
    second.data.copy_(first)
    step(first, saved)
    step(second, resumed)
    torch.testing.assert_close(second, first, rtol=0, atol=1e-7)
