"""What is logged of episodes is what happened in them."""

from pathlib import Path

import pytest

pytest.importorskip("gymnasium", reason="needs lightning-estimators[rl]")

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_estimators.callbacks import EpisodeReturns
from lightning_estimators.datamodules import Gymnasium
from tests.environments.acting import QUIET, Counting, SmallPolicy


def fit(tmp_path, *, length=3, callbacks=(), window=100, **options):
    data = Gymnasium(
        Counting, num_envs=2, num_steps=4, steps_per_epoch=3, eval_episodes=3, env_options={"length": length}
    )
    quiet = QUIET | {"logger": CSVLogger(tmp_path), "log_every_n_steps": 2, "max_epochs": 2}
    trainer = pl.Trainer(**quiet | options, callbacks=[EpisodeReturns(window), *callbacks])
    trainer.fit(SmallPolicy(2), datamodule=data)
    return trainer


def test_figures(tmp_path):
    trainer = fit(tmp_path)
    told = trainer.callback_metrics
    assert told["train/episode_return"] == told["val/episode_return"] == 1 + 2 + 3
    assert told["train/episode_length"] == told["val/episode_length"] == 3
    assert told["train/environment_steps"] == 6 * 4 * 2
    header, *rows = Path(trainer.loggers[0].log_dir, "metrics.csv").read_text().splitlines()
    column = header.split(",").index("train/environment_steps")
    assert [row.split(",")[column] for row in rows if row.split(",")[column]] == ["16.0", "32.0", "48.0"]


def test_nothing_is_said_before_an_episode_has_ended(tmp_path):
    told = fit(tmp_path, length=50).callback_metrics
    assert "train/episode_return" not in told
    assert told["train/environment_steps"] == 48


def test_the_window_forgets(tmp_path):
    class Longer(Counting):
        def reset(self, **options):
            self.length = self.episode + 2
            return super().reset(**options)

    data = Gymnasium(Longer, num_envs=1, num_steps=6, steps_per_epoch=1, eval_episodes=1, scale_observations=False)
    quiet = QUIET | {"max_epochs": 1, "limit_val_batches": 0}
    trainer = pl.Trainer(**quiet, callbacks=[EpisodeReturns(window=2)])
    trainer.fit(SmallPolicy(2), datamodule=data)  # episodes of one, two and three steps
    assert trainer.callback_metrics["train/episode_length"] == 2.5


def test_the_best_checkpoint_is_chosen_by_the_return(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="val/episode_return", mode="max")
    fit(tmp_path, callbacks=[best], enable_checkpointing=True)
    assert best.best_model_score == 6


def test_a_window_below_one_is_refused():
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        EpisodeReturns(0)
