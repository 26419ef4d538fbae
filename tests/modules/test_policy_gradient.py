"""Policies: what a batch is turned into, what is refused, and learning through the Trainer."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_estimators.baselines import LeaveOneOut
from lightning_estimators.callbacks import EpisodeReturns
from lightning_estimators.estimators import LAX, REBAR, REINFORCE, RELAX, StochasticBackprop
from lightning_estimators.modules import PolicyGradient
from lightning_estimators.networks import Surrogate
from lightning_estimators.policies import GaussianActions
from modules.acting_env import LENGTH, Acting, Ahead, Playing, Signals, collect
from modules.tiny import Recorder, trainer

KINDS = {"discrete": [3], "multi_discrete": [3, 4], "multi_binary": [2], "box": [2]}
ESTIMATORS = {
    "REINFORCE": REINFORCE,
    "RELAX": lambda: RELAX(Surrogate([8], "tanh")),
    "LAX": lambda: LAX(Surrogate([8], "tanh")),
}


def build(kind="discrete", estimator="REINFORCE", **settings):
    torch.manual_seed(0)
    return PolicyGradient(ESTIMATORS[estimator](), 3, kind, KINDS[kind], hidden=[8], critic_hidden=[8], **settings)


def batch_of(model, num_steps=LENGTH, num_envs=4, **env):
    torch.manual_seed(1)
    return collect(model, Signals(num_envs, **env), num_steps)


@pytest.mark.parametrize(
    ("kind", "estimator"),
    [
        (kind, estimator)
        for kind in KINDS
        for estimator in ESTIMATORS
        if estimator == "REINFORCE" or (estimator == "LAX") == (kind == "box")
    ],
)
def test_every_kind_of_action_is_acted_and_learned_from(kind, estimator):
    model = build(kind, estimator)
    batch = batch_of(model)
    costs = model.loss(batch)
    assert costs.shape == (LENGTH * 4,)
    costs.mean().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
    assert batch.actions.dtype == (torch.float32 if kind == "box" else torch.int64)
    expected = torch.Size([LENGTH, 4]) if kind == "discrete" else torch.Size([LENGTH, 4, len(KINDS[kind])])
    assert batch.actions.shape == (expected if kind == "multi_discrete" else batch.actions.shape)


def fit(model, loader, tmp_path, **options):
    run = trainer(tmp_path, max_epochs=2, callbacks=[EpisodeReturns()], **options)
    run.fit(model, loader, Playing(model, lambda: Signals(8, seed=5)))
    return run


def test_it_learns_through_the_trainer(tmp_path):
    model = build(optimizer=lambda p: torch.optim.Adam(p, lr=0.03))
    record = Recorder()
    fit(model, Acting(model, Signals(16), batches=40), tmp_path, logger=record)
    logged = {name: [m[name] for _, m in record.logged if name in m] for _, m in record.logged for name in m}
    assert logged["train/episode_return"][0] < 0.6 * LENGTH  # guessing is right once in three times
    assert logged["val/episode_return"][-1] > 0.8 * LENGTH
    assert logged["train/episode_length"][-1] == LENGTH
    assert logged["train/environment_steps"][-1] == 2 * 40 * 16 * LENGTH
    assert logged["train/entropy"][0] == pytest.approx(math.log(3), rel=0.1)
    assert logged["train/exploration"][-1] < logged["train/exploration"][0]
    for name in ("entropy", "exploration", "critic_loss"):
        assert f"`train/{name}`" in PolicyGradient.__doc__


def test_a_loader_that_collects_ahead_is_refused(tmp_path):
    model = build()
    with pytest.raises(ValueError, match="Ahead, has no length, so a batch is collected ahead"):
        fit(model, Ahead(model, Signals(4)), tmp_path)
    rows = TensorDataset(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="DataLoader, has 1 workers"):
        fit(model, DataLoader(rows, num_workers=1, persistent_workers=True), tmp_path)


def test_a_batch_that_another_policy_acted_is_refused(tmp_path, monkeypatch):
    model = build()
    batch = batch_of(model)
    model.loss(batch)
    with torch.no_grad():
        model.policy.last.weight[0] += 0.01  # all rows alike would change nothing
    with pytest.raises(ValueError, match="acted by another policy"):
        model.loss(batch)
    # The same through the Trainer, were the loader not refused: its second batch was collected before the first step.
    monkeypatch.setattr("lightning_estimators.modules.acting._refuse_collecting_ahead", lambda loaders: None)
    model = build(optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    with pytest.raises(ValueError, match="acted by another policy"):
        fit(model, Ahead(model, Signals(4)), tmp_path)
    assert model.trainer.global_step == 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PolicyGradient(REBAR(), 3, "discrete", [3]), TypeError, "REBAR needs the cost at other actions"),
        (
            lambda: PolicyGradient(StochasticBackprop(), 3, "discrete", [3]),
            TypeError,
            "StochasticBackprop needs the cost at other",
        ),
        (
            lambda: PolicyGradient(REINFORCE(LeaveOneOut(), num_samples=2), 3, "discrete", [3]),
            ValueError,
            "must have num_samples=1, got 2",
        ),
        (lambda: PolicyGradient(RELAX(), 3, "box", [3]), TypeError, "RELAX supports Bernoulli"),
        (lambda: PolicyGradient(LAX(), 3, "discrete", [3]), TypeError, "LAX needs a distribution with rsample"),
        (lambda: PolicyGradient(REINFORCE(), 3, "tuple", [3]), ValueError, "kind of actions must be one of discrete"),
        (lambda: PolicyGradient(REINFORCE(), 3, "discrete", [3, 2]), ValueError, "have one size"),
        (
            lambda: PolicyGradient(REINFORCE(), 0, "discrete", [3], policy=nn.Linear(3, 3)),
            ValueError,
            "observation_size must be at least 1",
        ),
        (lambda: build(policy=nn.Linear(3, 2)), ValueError, r"policy must map .* to \(B, 3\)"),
        (lambda: build(critic=nn.Linear(3, 2)), ValueError, "one number each"),
        (lambda: build(critic=nn.Linear(3, 1), use_critic=False), ValueError, "leave one of them out"),
        (lambda: build(gamma=1.1), ValueError, r"gamma must be a number in \[0, 1\]"),
        (lambda: build(gae_lambda=-0.1), ValueError, r"gae_lambda must be a number in \[0, 1\]"),
        (lambda: build(entropy_coef=-1.0), ValueError, "entropy_coef must be a finite number of at least 0"),
        (lambda: build(max_gradient_norm=0.0), ValueError, "max_gradient_norm must be positive"),
        (lambda: build(normalize_advantages="always"), ValueError, "normalize_advantages must be"),
        (lambda: build(critic_optimizer=1), TypeError, "critic_optimizer must"),
        (lambda: GaussianActions(2, initial_scale=0.0), ValueError, "positive, finite initial_scale"),
    ],
)
def test_what_cannot_work_is_refused_when_built(make, error, message):
    with pytest.raises(error, match=message):
        make()
