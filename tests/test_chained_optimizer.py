from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from torch import nn

from lightning_estimators.chained_optimizer import ChainedOptimizer

ADAM, SGD = functools.partial(torch.optim.Adam, lr=0.01), functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 2), (2,), ())]


def loss(weights, step):
    matrix, bias, scale = weights
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
    return ((x @ matrix + bias) * scale).square().sum()


def train(optimizer, weights, steps, first=0):
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss(weights, step).backward()
        optimizer.step()


def chained(weights, model=ADAM, surrogate=SGD):
    return ChainedOptimizer(model=model(weights[:2]), surrogate=surrogate(weights[2:]))


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_trains_as_its_parts_do_by_themselves():
    together, apart = parameters(), parameters()
    train(chained(together), together, 20)
    parts = ADAM(apart[:2]), SGD(apart[2:])
    for step in range(20):
        for part in parts:
            part.zero_grad()
        loss(apart, step).backward()
        for part in parts:
            part.step()
    assert equal(together, apart)


def test_two_adams_are_one_adam_with_two_groups_and_exchange_states_with_it():
    together, plain = parameters(), parameters()
    ours = ChainedOptimizer(
        model=torch.optim.Adam(together[:2], lr=0.01), surrogate=torch.optim.Adam(together[2:], lr=0.1)
    )
    groups = [{"params": plain[:2], "lr": 0.01}, {"params": plain[2:], "lr": 0.1}]
    theirs = torch.optim.Adam(groups)
    train(ours, together, 50)
    train(theirs, plain, 50)
    assert equal(together, plain)
    state, expected = ours.state_dict(), theirs.state_dict()
    assert state["state"].keys() == expected["state"].keys() == {0, 1, 2}
    assert [group["params"] for group in state["param_groups"]] == [[0, 1], [2]]
    ours.load_state_dict(copy.deepcopy(expected))
    theirs.load_state_dict(state)
    assert [group["name"] for group in ours.param_groups] == ["model", "surrogate"]
    train(ours, together, 50, first=50)
    train(theirs, plain, 50, first=50)
    assert equal(together, plain)


def test_groups_and_states_are_those_of_the_parts():
    weights = parameters()
    optimizer = chained(weights)
    train(optimizer, weights, 1)
    model, surrogate = optimizer.parts.values()
    assert [id(group) for group in optimizer.param_groups] == [id(model.param_groups[0]), id(surrogate.param_groups[0])]
    assert len(optimizer.state) == 3
    assert optimizer.state[weights[2]] is surrogate.state[weights[2]]
    assert weights[0] in optimizer.state
    assert optimizer.state.get(nn.Parameter(torch.zeros(1))) is None
    optimizer.state[weights[2]] = {"momentum_buffer": torch.tensor(7.0)}  # as Lightning moves states to a device
    assert surrogate.state[weights[2]]["momentum_buffer"] == 7
    optimizer.param_groups[1]["lr"] = 5.0
    assert surrogate.param_groups[0]["lr"] == 5.0
    assert optimizer.defaults.keys() == model.defaults.keys() & surrogate.defaults.keys()


@pytest.mark.parametrize("how", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_copies_go_on_alike(how):
    weights = parameters()
    optimizer = chained(weights)
    train(optimizer, weights, 3)
    twin = how(optimizer)
    copies = [p for group in twin.param_groups for p in group["params"]]
    assert equal(copies, weights)
    train(optimizer, weights, 3, first=3)
    train(twin, copies, 3, first=3)
    assert equal(copies, weights)


def test_resumes_exactly():
    weights, other = parameters(), parameters()
    optimizer = chained(weights)
    train(optimizer, weights, 3)
    saved = copy.deepcopy((weights, optimizer.state_dict()))
    train(optimizer, weights, 3, first=3)
    resumed = chained(other)
    with torch.no_grad():
        for parameter, value in zip(other, saved[0], strict=True):
            parameter.copy_(value)
    resumed.load_state_dict(saved[1])
    train(resumed, other, 3, first=3)
    assert equal(other, weights)
    with pytest.raises(ValueError, match="parameter group"):
        ChainedOptimizer(model=ADAM(parameters())).load_state_dict(saved[1])


def test_the_closure_runs_once_with_gradients():
    weights = parameters()
    optimizer, calls = chained(weights), []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        value = loss(weights, 0)
        value.backward()
        return value

    before = [w.detach().clone() for w in weights]
    assert optimizer.step(closure).item() == pytest.approx(loss(before, 0).item())
    assert calls == [True]
    assert not any(torch.equal(a, b) for a, b in zip(before, weights, strict=True))


def test_hooks_run_once_wherever_they_hang():
    weights = parameters()
    optimizer, seen = chained(weights), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("whole, before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("whole, after"))
    optimizer.parts["surrogate"].register_step_post_hook(lambda *_: seen.append("part"))
    optimizer.register_state_dict_post_hook(lambda *_: seen.append("state"))
    train(optimizer, weights, 1)
    optimizer.state_dict()
    assert seen == ["whole, before", "part", "whole, after", "state"]


def test_schedulers_hang_on_the_whole_or_on_a_part():
    weights = parameters()
    optimizer = chained(weights)
    whole = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    part = torch.optim.lr_scheduler.StepLR(optimizer.parts["surrogate"], step_size=1, gamma=0.1)
    train(optimizer, weights, 1)
    whole.step()
    part.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.005, 0.1 * 0.5 * 0.1])


def test_groups_are_added_to_the_part_they_name():
    weights = parameters()
    optimizer = ChainedOptimizer(model=ADAM(weights[:1]), surrogate=SGD(weights[2:]))
    optimizer.add_param_group({"params": weights[1], "lr": 0.5})
    more = nn.Parameter(torch.zeros(4))
    optimizer.add_param_group({"params": [more], "name": "surrogate"})
    assert [group["name"] for group in optimizer.param_groups] == ["model", "surrogate", "model/1", "surrogate/1"]
    assert [group["name"] for group in copy.deepcopy(optimizer).param_groups][-2:] == ["model/1", "surrogate/1"]
    assert optimizer.parts["model"].param_groups[1]["lr"] == 0.5
    assert optimizer.parts["surrogate"].param_groups[1]["params"] == [more]
    with pytest.raises(ValueError, match="in no part yet"):
        optimizer.add_param_group({"params": [more], "name": "model"})
    again = ChainedOptimizer(model=ADAM(weights[:1]), surrogate=SGD(weights[2:]))
    again.param_groups = optimizer.param_groups  # as fine-tuning callbacks do when they resume
    assert [len(part.param_groups) for part in again.parts.values()] == [2, 2]


def test_groups_keep_names_of_their_own():
    weights = parameters()
    groups = [{"params": weights[:1], "name": "bulk"}, {"params": weights[1:2]}]
    optimizer = ChainedOptimizer(model=ADAM(groups), surrogate=SGD(weights[2:]))
    assert [group["name"] for group in optimizer.param_groups] == ["model/bulk", "model/1", "surrogate"]


def test_one_infinite_gradient_under_a_scaler_skips_both_parts():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    weights = parameters()
    optimizer = chained(weights)
    before = [w.detach().clone() for w in weights]
    scaler.scale(loss(weights, 0)).backward()
    weights[2].grad.fill_(torch.inf)
    scaler.step(optimizer)
    scaler.update()
    assert equal(before, weights)
    assert scaler.get_scale() == 1.0
    optimizer.zero_grad()
    scaler.scale(loss(weights, 0)).backward()
    scaler.step(optimizer)
    expected = [w.clone().requires_grad_() for w in before]
    train(chained(expected), expected, 1)
    assert equal(weights, expected)


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"capturable": False}])
def test_options_of_the_parts_pass_through(options):
    weights, plain = parameters(), parameters()
    optimizer = ChainedOptimizer(model=torch.optim.Adam(weights[:2], **options), surrogate=SGD(weights[2:]))
    train(optimizer, weights, 5)
    train(chained(plain, model=torch.optim.Adam), plain, 5)
    for ours, theirs in zip(weights, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_one_part_is_enough():
    weights, plain = parameters(), parameters()
    train(ChainedOptimizer(model=ADAM(weights)), weights, 5)
    train(ADAM(plain), plain, 5)
    assert equal(weights, plain)


class Sharded(torch.optim.SGD):
    def consolidate_state_dict(self):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda w: {}, ValueError, "at least one part"),
        (lambda w: {"model": torch.optim.LBFGS(w)}, ValueError, "LBFGS, which evaluates the loss many times"),
        (lambda w: {"model": ADAM(w), "surrogate": SGD(w[2:])}, ValueError, "'model' and 'surrogate' share"),
        (lambda w: {"model": Sharded(w)}, ValueError, "Sharded, whose state lies on several processes"),
        (lambda w: {"model": "Adam"}, TypeError, "must be a torch.optim.Optimizer, got 'Adam'"),
    ],
)
def test_parts_that_cannot_be_chained_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        ChainedOptimizer(**make(parameters()))
