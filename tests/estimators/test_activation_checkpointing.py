"""Estimators inside `torch.utils.checkpoint`: the same gradients as without, from the first training step on."""

import pytest
import torch
from torch.distributions import Bernoulli, Independent
from torch.utils.checkpoint import CheckpointError, checkpoint

from lightning_estimators.estimators import REBAR, REINFORCE, RELAX, Concrete, RelaxedREBAR, StochasticBackprop


def fixed(make):
    return lambda: make(learn_temperature=False, learn_eta=False)


def sampled():
    return StochasticBackprop(num_changes=1)


def steps(make, layers, *, checkpointed):
    """Value and gradients of two steps of one or two layers, one estimator inside the cost of the other."""
    torch.manual_seed(0)
    logits = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3).requires_grad_()
    weight = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    estimators = [make().double() for _ in range(layers)]
    for estimator in estimators:
        estimator.prepare(Independent(Bernoulli(logits=logits), 1))

    def run(logits):
        def cost(b, *above):
            if len(above) + 1 < layers:
                return estimators[len(above) + 1](Independent(Bernoulli(logits=b @ weight), 1), lambda c: cost(c, b))
            return torch.tanh(b @ weight - 0.3).square().sum(-1) + sum((b * a).sum(-1) for a in above)

        return estimators[0](Independent(Bernoulli(logits=logits), 1), cost)

    for _ in range(2):
        value = checkpoint(run, logits, use_reentrant=False) if checkpointed else run(logits)
        value.sum().backward()
    own = [p.grad for estimator in estimators for p in estimator.parameters() if p.grad is not None]
    return [value.detach(), logits.grad, weight.grad, *own]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(
    "make",
    [REINFORCE, lambda: REINFORCE(num_samples=2), Concrete, StochasticBackprop, sampled, RELAX, fixed(REBAR)],
    ids=["REINFORCE", "leave-one-out", "Concrete", "StochasticBackprop", "sampled", "RELAX", "REBAR, fixed"],
)
def test_gradients_are_those_without_checkpointing(make, layers):
    expected, found = (steps(make, layers, checkpointed=checkpointed) for checkpointed in (False, True))
    assert len(expected) == len(found)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [REBAR, RelaxedREBAR])
def test_learned_control_variates_work_in_one_layer_and_say_so_in_two(make):
    # Their own gradients are taken while the forward pass runs, which torch cannot recompute inside one another.
    for a, b in zip(*(steps(make, 1, checkpointed=checkpointed) for checkpointed in (False, True)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    with pytest.raises(CheckpointError):
        steps(make, 2, checkpointed=True)
