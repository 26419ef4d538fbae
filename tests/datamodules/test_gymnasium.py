"""The datamodule under Lightning's loop: who acted, when, and what survives a checkpoint."""

import itertools

import pytest
import torch

pytest.importorskip("gymnasium", reason="needs lightning-estimators[rl]")

import lightning.pytorch as pl
from gymnasium import spaces

from lightning_estimators.callbacks import ExactResume
from lightning_estimators.cli import EstimatorCLI
from lightning_estimators.datamodules import Gymnasium
from tests.environments.acting import QUIET, Counting, SmallPolicy


def data(**options):
    return Gymnasium(**{"num_envs": 2, "num_steps": 4, "steps_per_epoch": 3, "eval_episodes": 3, **options})


def fit(module=None, datamodule=None, ckpt_path=None, **options):
    module = module or SmallPolicy()
    trainer = pl.Trainer(**{**QUIET, "max_epochs": 2, "callbacks": [ExactResume()], **options})
    trainer.fit(module, datamodule=datamodule or data(), ckpt_path=ckpt_path)
    return module, trainer


class WithoutLength:
    """Collects like `Rollouts`, but cannot say how many batches there are."""

    def __init__(self, collect):
        self.collect = collect

    def __iter__(self):
        yield from map(self.collect, range(3))


class ReadAhead(Gymnasium):
    """What must not be: Lightning fetches a batch ahead to know whether it is the last."""

    def train_dataloader(self):
        return WithoutLength(self.collect)


def test_the_policy_that_learns_is_the_one_that_acted():
    module, _ = fit()
    assert len(module.differences) == 6
    assert max(module.differences) < 1e-5


def test_a_loader_without_length_would_hand_over_batches_of_an_older_policy():
    """The proof that the test above can fail."""
    module, _ = fit(datamodule=ReadAhead(num_envs=2, num_steps=4), max_epochs=1)
    assert module.differences[0] < 1e-5
    assert min(module.differences[1:]) > 1e-2


def test_reading_ahead_is_refused():
    class Ahead(Gymnasium):
        def train_dataloader(self):
            loader = super().train_dataloader()

            def batches():
                yield from loader

            return batches()

    with pytest.raises(RuntimeError, match="before the policy had learned from the first"):
        fit(datamodule=Ahead(num_envs=2, num_steps=4))


def test_batches_are_numbered_over_the_run():
    module, _ = fit(limit_val_batches=0)
    assert module.acted == [(number, False) for number in range(6)]


def test_episodes_run_on_from_epoch_to_epoch():
    module, _ = fit(SmallPolicy(2), data(env=Counting, scale_observations=False, env_options={"length": 100}))
    numbers = torch.cat([batch.observations[:, 0, 1] for batch in module.seen])
    assert numbers.tolist() == list(range(24))


def test_a_run_is_repeated_by_its_seed_and_no_other():
    def seen(seed):
        torch.manual_seed(0)
        return torch.cat([batch.observations for batch in fit(datamodule=data(seed=seed))[0].seen])

    assert torch.equal(seen(1), seen(1))
    assert not torch.equal(seen(1)[0], seen(2)[0])


def test_validation_does_not_change_training():
    def trained(**options):
        torch.manual_seed(0)
        return fit(**options)[0].linear.weight

    assert torch.equal(trained(), trained(limit_val_batches=0))


def test_rollouts_at_fixed_weights_do_not_change_training():
    class Looking(pl.Callback):
        seen = ()

        def on_train_epoch_end(self, trainer, pl_module):
            Looking.seen = list(itertools.islice(trainer.datamodule.rollouts(pl_module), 2))

    def trained(*callbacks):
        torch.manual_seed(0)
        module, trainer = fit(callbacks=[ExactResume(), *callbacks])
        return torch.cat([batch.observations for batch in module.seen]), trainer.datamodule.scale.state_dict()

    (seen, scale), (alone, same) = trained(Looking()), trained()
    assert torch.equal(seen, alone)
    assert scale["count"] == same["count"]
    first, second = Looking.seen
    assert second.elapsed_steps[0].tolist() != [0, 0] or first.terminated[-1].any()
    assert not torch.equal(first.observations, second.observations)


def test_a_continued_run_keeps_its_count_and_scale_and_says_that_episodes_are_new(tmp_path, capsys, caplog):
    _, trainer = fit(max_steps=4, max_epochs=-1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = trainer.datamodule.scale.state_dict()
    again = data()
    with caplog.at_level("INFO"):
        module, trainer = fit(datamodule=again, ckpt_path=tmp_path / "last.ckpt", max_epochs=3, limit_val_batches=0)
    assert module.acted == [(number, False) for number in range(4, 9)]
    assert again.scale.state_dict()["count"] == saved["count"] + 5 * 8
    assert module.seen[0].elapsed_steps[0].tolist() == [0, 0]
    assert "begin new episodes" in caplog.text + "".join(capsys.readouterr())
    assert trainer.global_step == 9


def test_scale_comes_with_the_checkpoint_to_a_process_of_its_own(tmp_path):
    module, trainer = fit()
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    expected = module.played[-1]
    fresh = SmallPolicy()
    pl.Trainer(**QUIET).validate(fresh, datamodule=data(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert torch.equal(fresh.played[0].returns, expected.returns)


@pytest.mark.parametrize("purpose", ["validate", "test", "predict"])
def test_evaluation_plays_its_own_episodes(purpose):
    module, datamodule = SmallPolicy(), data(eval_episodes=5)
    trainer = pl.Trainer(**QUIET)
    played = getattr(trainer, purpose)(module, datamodule=datamodule)
    (episodes,) = played if purpose == "predict" else module.played
    assert len(episodes.returns) == 5
    assert torch.equal(episodes.returns, episodes.lengths.float())  # CartPole
    assert module.acted == [(0, True)]
    assert datamodule.scale.state_dict()["count"] == 0


def test_environments_are_closed():
    class Closing(Counting):
        closed = 0

        def close(self):
            Closing.closed += 1

    made = []
    fit(SmallPolicy(2), data(env=lambda: made.append(Closing()) or made[-1]))
    assert Closing.closed == len(made) == 1 + 2 + 2


def test_what_a_model_is_told():
    datamodule = data(env=lambda: Counting(action_space=spaces.MultiDiscrete([2, 5])))
    assert (datamodule.observation_size, datamodule.action_kind, datamodule.action_sizes) == (
        2,
        "multi_discrete",
        [2, 5],
    )
    assert "num_steps=4" in str(datamodule)


def test_a_module_that_cannot_act_is_refused():
    class Mute(pl.LightningModule):
        training_step = validation_step = configure_optimizers = lambda *_: None

    with pytest.raises(TypeError, match="needs a module that acts"):
        fit(Mute())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_envs": 0}, ValueError),
        ({"num_steps": -1}, ValueError),
        ({"eval_episodes": 1.5}, ValueError),
        ({"max_episode_steps": 0}, ValueError),
        ({"vectorization": "threads"}, ValueError),
        ({"env": "NoSuchThing-v0"}, ValueError),
        ({"env": 3}, TypeError),
    ],
)
def test_bad_arguments_are_refused(options, error):
    with pytest.raises(error, match=next(iter(options)) if "NoSuch" not in str(options) else "NoSuchThing"):
        data(**options)


def test_it_says_what_is_missing_without_a_trainer():
    with pytest.raises(RuntimeError, match=r"call trainer\.fit"):
        data().train_dataloader()


def test_the_command_line_continues_a_policy_with_another_rate_of_its_critic(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--data.steps_per_epoch=2"]
    command = ["fit", "--config=cartpole", *quiet, "--data.eval_episodes=1"]
    EstimatorCLI([*command, "--trainer.max_epochs=1"])
    rate = "--model.critic_optimizer.init_args.lr=0.5"
    continued = EstimatorCLI([*command, "--trainer.max_epochs=2", "--ckpt_path=last", rate])
    assert continued.trainer.global_step == 4
    (optimizer,) = continued.trainer.optimizers
    assert {name: part.param_groups[0]["lr"] for name, part in optimizer.parts.items()} == {
        "model": 0.003,
        "critic": 0.5,
    }
