"""What candidates do wrong costs their own row, and leaves no trace in the module."""

import math
import random
import signal

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.distributions import Bernoulli, Independent

from lightning_estimators import compare
from lightning_estimators.baselines import LearnedBaseline
from lightning_estimators.estimators import (
    LAX,
    REBAR,
    REINFORCE,
    Concrete,
    Enumeration,
    Pathwise,
    StochasticBackprop,
)
from lightning_estimators.model_parts import gradient_estimators
from lightning_estimators.norm_layers import norms_kept
from tests.comparison import misbehaving
from tests.comparison.misbehaving import (
    ChangesItsInput,
    ClaimsNothing,
    CountsNothing,
    Crashes,
    Exits,
    Interrupted,
    Leaks,
    NeverLeaves,
    NotANumber,
    Refuses,
    Slow,
)
from tests.comparison.models import bottleneck_and_batch, two_latents

Q = Independent(Bernoulli(logits=torch.zeros(2)), 1)


def cost(b):
    return (b.sum(-1) - 1.2) ** 2


def everything(module):
    """The state of a module and of the process, as bytes and values."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    grads = {name: p.grad for name, p in module.named_parameters()}
    return (
        {name: t.detach().numpy().tobytes() for name, t in tensors.items()},
        {name: None if g is None else g.numpy().tobytes() for name, g in grads.items()},
        [(name, part.training, sorted(vars(part)), len(part._forward_hooks)) for name, part in module.named_modules()],
        {name: p.requires_grad for name, p in module.named_parameters()},
        getattr(module, "calls", None),
        torch.get_rng_state().numpy().tobytes(),
        random.getstate(),
        np.random.get_state()[1].tobytes(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        signal.getsignal(signal.SIGALRM),
    )


def test_crashing_refusing_and_nan_cost_their_own_row():
    candidates = [Crashes(), Refuses(), NotANumber(), LAX(), StochasticBackprop()]
    rows = compare((Q, cost), estimators=candidates, draws=10).rows
    assert [row.refused for row in rows[:2]] == ["RuntimeError: it broke in two lines", "it wants something else"]
    assert "not finite" in rows[2].refused
    assert "LAX needs" in rows[3].refused
    assert all(math.isnan(row.variance) and row.draws == 0 for row in rows[:4])
    assert rows[4].refused is None
    assert rows[4].draws == 10


def test_claims_that_raise_and_exits_cost_their_own_row():
    candidates = [ClaimsNothing(), CountsNothing(), Exits(), StochasticBackprop()]
    rows = compare((Q, cost), estimators=candidates, draws=5).rows
    assert [row.refused for row in rows] == ["NotImplementedError: one day", "KeyError: 'f'", "SystemExit: 3", None]


def test_inputs_are_put_back():
    context, learned = torch.ones(3, 2), REINFORCE(LearnedBaseline())
    q = Independent(Bernoulli(logits=torch.zeros(3, 2)), 1)
    rows = compare((q, cost), context=context, estimators=[ChangesItsInput(), learned], draws=5, learning_steps=2).rows
    assert torch.equal(context, torch.ones(3, 2))
    assert [row.refused for row in rows] == [None, None]
    module, batch = bottleneck_and_batch(REINFORCE())
    before, step = batch[0].clone(), module.training_step

    def careless(batch, batch_idx):
        batch[0].mul_(0.5)
        return step(batch, batch_idx)

    module.training_step = careless
    compare(module, batch, estimators=[], draws=4, learning_steps=0)
    assert torch.equal(batch[0], before)


def test_modules_deep_in_a_cost_are_left_as_they_were():
    class Model:
        parts = None

    model, norm = Model(), nn.BatchNorm1d(2)
    model.parts = {"decoder": [nn.Sequential(nn.Linear(2, 2), norm)]}

    def decode(b):
        return model.parts["decoder"][0](b.reshape(-1, 2)).reshape(b.shape)

    q = Independent(Bernoulli(logits=torch.zeros(4, 2)), 1)
    result = compare((q, lambda b: decode(b).square().sum(-1)), estimators=[REINFORCE()], draws=4, learning_steps=0)
    assert int(norm.num_batches_tracked) == 0
    assert result.reference.kind == "none"  # the BatchNorm couples costs
    assert set(result.rows[0].groups) == {"logits/q", "f"}


def test_loggers_of_a_trainer_hear_nothing(tmp_path):
    module, batch = bottleneck_and_batch(REINFORCE())
    step = module.training_step

    def talkative(batch, batch_idx):
        module.logger.experiment.log_metrics({"inside": 1.0})
        return step(batch, batch_idx)

    module.training_step = talkative
    logger = CSVLogger(tmp_path)
    module.trainer = pl.Trainer(logger=logger, enable_checkpointing=False, accelerator="cpu")
    compare(module, batch, estimators=[], draws=4, learning_steps=0)
    assert module.trainer.loggers == [logger]
    assert logger.experiment.metrics == []


def test_interruption_between_batches_keeps_the_table(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_estimators.comparison.run.data_variance", interrupted)
    module, batch = bottleneck_and_batch(REINFORCE())
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*batch), batch_size=4)
    result = compare(module, loader, estimators=[], draws=6, learning_steps=0)
    assert result.interrupted
    assert result.rows[0].draws == 6


def test_slow_candidates_are_stopped_and_others_go_on():
    result = compare((Q, cost), estimators=[Slow(100.0), Slow(0.01), StochasticBackprop()], budget=1.5)
    assert result.seconds < 10  # of which most would be a busy machine's
    assert "share of the budget" in result.rows[0].refused
    assert result.rows[2].draws > 10
    assert result.rows[1].step_seconds > 0.01


def test_blocks_that_an_alarm_keeps_from_ending_end_with_the_candidate():
    rows = compare((Q, cost), estimators=[NeverLeaves(), StochasticBackprop()], draws=5).rows
    assert [row.refused is None for row in rows] == [False, True]
    with norms_kept() as kept:
        assert kept.is_outermost
    with pytest.raises(ValueError, match="different Context"):
        NeverLeaves.block.__exit__(None, None, None)  # takes its hook away, and then finds its variable gone


def test_interruption_gives_what_there_is():
    misbehaving.Interrupted.total = 0
    candidates = [StochasticBackprop(), Interrupted(calls=9), REINFORCE()]
    result = compare((Q, cost), estimators=candidates, draws=20, learning_steps=2)
    assert result.interrupted
    assert "interrupted" in str(result)
    assert result.rows[0].draws >= 10
    assert not math.isnan(result.rows[0].variance)
    assert "interrupted before" in result.rows[2].refused


@pytest.mark.parametrize("training", [True, False])
def test_module_is_bit_identical_afterwards(training):
    module, batch = two_latents().train(training), torch.randn(6, 5)
    module.encoder[0].weight.grad = torch.ones(6, 5)
    Leaks.victim = module
    before = everything(module)
    candidates = [REINFORCE(), StochasticBackprop(), Concrete(), Crashes(), NotANumber(), Leaks()]
    result = compare(module, batch, estimators=candidates, draws=4, learning_steps=2)
    assert everything(module) == before
    assert {row.name: row.refused is None for row in result.rows} == {
        "discrete: REBAR(), continuous: Pathwise()": True,
        "REINFORCE()": True,
        "StochasticBackprop()": True,
        "Concrete() at discrete": True,
        "Crashes()": False,
        "NotANumber()": False,
        "Leaks()": False,
    }
    assert "changed the module" in result.rows[-1].refused
    assert "encoder.0.weight" in result.rows[-1].refused
    assert result.rows[0].current
    assert result.rows[0].groups.keys() == {
        *("encoder", "to_bits", "to_normal", "decoder", "logits/discrete", "logits/continuous")
    }


def test_module_is_as_it_was_after_an_error():
    module, wrong = two_latents(), torch.randn(6, 4)
    before = everything(module)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        compare(module, wrong, draws=4)
    assert everything(module) == before


def test_training_mode_is_measured_whatever_the_module_is_in():
    # The enumerated gradient of a module with dropout varies with it: no exact reference, no zero variance.
    module = two_latents().eval()
    result = compare(module, torch.randn(6, 5), estimators=[], draws=6, learning_steps=0)
    assert result.reference.kind == "pooled"
    module.encoder[3].p = 0.0
    module.continuous = StochasticBackprop()
    assert compare(module, torch.randn(6, 5), estimators=[], draws=6, learning_steps=0).rows[0].variance > 0


def test_one_latent_at_a_time():
    module, batch = two_latents(), torch.randn(4, 5)
    result = compare(module, batch, [StochasticBackprop(), Pathwise()], exchange="each", draws=4, learning_steps=0)
    names = [(row.name, row.refused is None) for row in result.rows[1:]]
    assert names == [
        ("StochasticBackprop() at discrete", True),
        ("StochasticBackprop() at continuous", True),
        ("Pathwise() at discrete", False),
        ("Pathwise() at continuous", True),
    ]


def test_plain_module_batch_of_one():
    module, batch = bottleneck_and_batch(REBAR(), size=1)
    before = everything(module)
    result = compare(module, batch, estimators=[Enumeration(), StochasticBackprop()], draws=40, learning_steps=3)
    assert everything(module) == before
    assert result.reference.kind == "exact"
    assert [row.name for row in result.rows] == ["REBAR()", "Enumeration()", "StochasticBackprop()"]
    assert all(row.bias_z < 4 for row in result.rows)
    assert result.rows[1].variance == 0
    assert result.rows[0].learning_steps == 3


def test_autocast():
    module, batch = bottleneck_and_batch(REINFORCE())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = compare(module, batch, estimators=[StochasticBackprop(), REBAR()], draws=30, learning_steps=2)
    assert [row.refused for row in result.rows] == [None] * 3
    assert all(row.bias_z < 4 for row in result.rows)


def test_loaders_are_left_as_they_were_and_tell_the_variance_between_batches():
    module, _ = bottleneck_and_batch(StochasticBackprop())
    generator = torch.Generator().manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(24, 4), torch.arange(24) % 3)
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True, generator=generator, num_workers=1)
    before, rng = generator.get_state(), torch.get_rng_state()
    result = compare(module, loader, estimators=[], draws=4, learning_steps=0)
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), rng)
    assert result.data_variance > 0
    assert result.data_variance == pytest.approx(variance_between_batches(module, loader), rel=0.7)


def variance_between_batches(module, loader):
    module.estimator = Enumeration()
    gradients = []
    for index, batch in enumerate(loader):
        module.log = lambda *_: None
        loss = module.training_step(batch, index)["loss"]
        grads = torch.autograd.grad(loss, [*module.features.parameters(), *module.head.parameters()])
        gradients.append(torch.cat([g.flatten() for g in grads]))
    return float(torch.stack(gradients).var(0).sum())


def test_batch_norm_inside_the_cost_leaves_no_reference():
    norm = nn.BatchNorm1d(2)
    q = Independent(Bernoulli(logits=torch.zeros(4, 2)), 1)
    result = compare((q, lambda b: norm(b.reshape(-1, 2)).reshape(b.shape).prod(-1)), estimators=[REINFORCE()], draws=5)
    assert result.reference.kind == "none"
    assert math.isnan(result.rows[0].bias_z)
    assert result.rows[0].variance > 0
    assert "no bias could be measured" in result.recommendation
    assert "BatchNorm" in str(result)
    assert int(norm.num_batches_tracked) == 0


def test_estimators_given_are_not_trained():
    rebar = REBAR()
    before = {name: value.clone() for name, value in rebar.state_dict().items()}
    row = compare((Q, cost), estimators=[rebar], draws=4, learning_steps=20).rows[0]
    assert all(torch.equal(value, before[name]) for name, value in rebar.state_dict().items())
    assert [step for step, _ in row.learning_curve] == list(range(2, 21, 2))
    assert row.learning_steps == 20


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((nn.Linear(1, 1),), TypeError, "LightningModule and a batch"),
        (((Q, 3),), TypeError, "a callable"),
        (((Q, cost), torch.zeros(1)), TypeError, "no batch"),
        (((Q, cost), None, [REBAR]), TypeError, "REBAR"),
        (((Q, cost), None, REBAR()), TypeError, "sequence"),
        (((Q, cost), None, [], 0.0), ValueError, "budget"),
    ],
)
def test_refused_at_once(arguments, error, words):
    with pytest.raises(error, match=words):
        compare(*arguments)


def test_module_without_batch_or_estimator():
    module = two_latents()
    with pytest.raises(TypeError, match="needs a batch"):
        compare(module)
    for path in gradient_estimators(module):
        setattr(module, path, Slow(0.0).requires_grad_())
    module.loss = lambda batch: module.encoder(batch).sum(-1)
    with pytest.raises(ValueError, match="calls no gradient estimator"):
        compare(module, torch.randn(4, 5))


def test_learning_that_the_budget_cuts_short_is_said():
    result = compare((Q, cost), estimators=[REINFORCE(), StochasticBackprop()], budget=1.5, learning_steps=100_000)
    assert any("learning short: REINFORCE()" in note for note in result.notes)
    assert result.rows[1].draws >= 10
