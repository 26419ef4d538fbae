"""Policies in environments of strangers, with networks of theirs, in other precisions, and after an interruption."""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("gymnasium", reason="needs lightning-estimators[rl]")

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_estimators.callbacks import GradientVariance
from lightning_estimators.datamodules import Gymnasium
from lightning_estimators.estimators import LAX, REINFORCE, RELAX
from lightning_estimators.modules import PolicyGradient
from lightning_estimators.networks import Surrogate
from modules.tiny import same, state
from tests.environments.acting import QUIET
from tests.environments.strange import REFUSED, SPACES, Strange

pytestmark = pytest.mark.filterwarnings("ignore")


def data(env="CartPole-v1", **options):
    return Gymnasium(env, num_envs=2, num_steps=4, steps_per_epoch=2, eval_episodes=2, env_options=options)


def build(datamodule, **settings):
    torch.manual_seed(0)
    box = datamodule.action_kind == "box"
    estimator = LAX(Surrogate([4], "tanh")) if box else RELAX(Surrogate([4], "tanh"))
    sizes = datamodule.observation_size, datamodule.action_kind, datamodule.action_sizes
    return PolicyGradient(settings.pop("estimator", estimator), *sizes, hidden=[8], critic_hidden=[8], **settings)


def fit(model, datamodule, callbacks=(), ckpt_path=None, **options):
    trainer = pl.Trainer(**{**QUIET, "max_epochs": 1, "limit_val_batches": 0, **options}, callbacks=list(callbacks))
    trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("name", SPACES)
def test_spaces_of_strangers_are_acted_in_and_learned_from(name):
    observations, actions, size = SPACES[name]
    datamodule = data(Strange, observation_space=observations, action_space=actions)
    assert datamodule.observation_size == size
    model = build(datamodule)
    before = [p.clone() for p in model.policy.parameters()]
    trainer = fit(model, datamodule)
    assert trainer.callback_metrics["train/episode_return"] == 3
    assert all(not torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_spaces_that_no_policy_takes_are_refused_by_name(name):
    options, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        data(Strange, **options)


@pytest.mark.parametrize(("options", "name"), [({"reward": float("nan")}, "rewards"), ({"shown": torch.inf}, "obser")])
def test_what_is_not_finite_is_the_environments_fault(options, name):
    datamodule = data(Strange, **options)
    with pytest.raises(ValueError, match=f"returned {name}.* first in step 0 of the batch in environment 0"):
        fit(build(datamodule), datamodule)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true", "64-true"])
def test_other_precisions_see_one_policy_acting_and_learning(precision):
    datamodule = data()
    trainer = fit(build(datamodule, estimator=REINFORCE()), datamodule, precision=precision)
    assert trainer.global_step == 2


class Convolutional(nn.Module):
    """Sees flattened pictures."""

    def __init__(self):
        super().__init__()
        self.convolution, self.last = nn.Conv2d(3, 4, 3), nn.LazyLinear(2)

    def forward(self, x):
        return self.last(self.convolution(x.reshape(-1, 4, 4, 3).movedim(-1, 1)).flatten(1))


def test_a_strangers_network_learns():
    observations, actions, _ = SPACES["pictures"]
    datamodule = data(Strange, observation_space=observations, action_space=actions)
    assert fit(build(datamodule, policy=Convolutional()), datamodule).global_step == 2


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(4)])
def test_a_policy_that_is_random_or_sees_the_batch_is_refused_when_it_learns(layer):
    datamodule = data()
    with pytest.raises(ValueError, match=r"acted by another policy.* as with dropout, and not depend on the rest"):
        fit(build(datamodule, policy=nn.Sequential(layer, nn.Linear(4, 2))), datamodule)


def test_a_network_that_returns_no_tensor_is_refused():
    class Recurrent(nn.RNN):
        pass

    with pytest.raises(ValueError, match="for B = 2 it returned tuple"):
        build(data(), policy=Recurrent(4, 2))


def test_the_variance_on_one_batch_is_refused_and_that_of_the_steps_is_told():
    datamodule = data()
    with pytest.raises(TypeError, match="in a batch of a policy the actions are given"):
        fit(build(datamodule), datamodule, [GradientVariance()])
    trainer = fit(build(datamodule), datamodule, [GradientVariance("moments")], log_every_n_steps=1)
    assert trainer.callback_metrics["gradient/policy/variance"] > 0


class Watching(pl.Callback):
    """Keeps what training starts from and which batches it gets, and presses ctrl-C before one of them."""

    def __init__(self, interrupt=None):
        self.interrupt, self.batches, self.numbers, self.started = interrupt, [], [], None

    def on_train_start(self, trainer, pl_module):
        self.started = (copy.deepcopy(state(pl_module)), trainer.datamodule.scale.state_dict(), pl_module.noise_seed())
        acting = pl_module.acting

        def numbered(number, **options):
            self.numbers.append(number)
            return acting(number, **options)

        pl_module.acting = numbered

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)
        if trainer.global_step == self.interrupt:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_with_everything_but_its_episodes(tmp_path, capsys, caplog):
    """Weights, optimizers, statistics and noise; and it says that episodes are new."""
    settings = {"normalize_advantages": "running"}
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True)
    kept = {}

    class Keeping(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            kept.update(
                state=state(pl_module), scale=trainer.datamodule.scale.state_dict(), seed=pl_module.noise_seed()
            )

    first = Watching(interrupt=3)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(build(data(), **settings), data(), [saving, Keeping(), first], max_epochs=3, enable_checkpointing=True)
    again = Watching()
    with caplog.at_level("INFO"):
        trainer = fit(build(data(), **settings), data(), [again], tmp_path / "last.ckpt", max_epochs=3)
    weights, scale, seed = again.started
    assert same(weights, kept["state"])
    assert {"past_scale.mean_square", "past_scale.started"} <= weights["weights"].keys()
    assert len(weights["optimizers"]) == 1
    assert scale["count"] == kept["scale"]["count"] == 3 * 8
    assert seed == kept["seed"]
    assert (first.numbers, again.numbers) == ([0, 1, 2, 3], [3, 4, 5])
    assert again.batches[0].elapsed_steps[0].tolist() == [0, 0]
    assert "begin new episodes" in caplog.text + "".join(capsys.readouterr())
    assert trainer.global_step == 6
