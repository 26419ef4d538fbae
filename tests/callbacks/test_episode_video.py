"""Videos are written where they are expected, and training does not depend on them."""

import pytest
import torch

pytest.importorskip("gymnasium", reason="needs lightning-estimators[rl]")
pytest.importorskip("moviepy", reason="needs lightning-estimators[rl]")

import lightning.pytorch as pl
import numpy as np

from lightning_estimators.callbacks import EpisodeVideo
from lightning_estimators.datamodules import Digits, Gymnasium
from tests.environments.acting import QUIET, Counting, SmallPolicy


class Filmed(Counting):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  gymnasium's form

    def __init__(self, render_mode=None):
        super().__init__(length=3)
        self.render_mode = render_mode

    def render(self):
        return np.full((32, 32, 3), 80 * self.number, dtype=np.uint8)


def data(env=Filmed):
    return Gymnasium(env, num_envs=2, num_steps=4, steps_per_epoch=2, eval_episodes=2)


def fit(callbacks, env=Filmed):
    torch.manual_seed(0)
    module = SmallPolicy(2)
    pl.Trainer(**QUIET, max_epochs=2, callbacks=callbacks).fit(module, datamodule=data(env))
    return module


def test_videos_while_training(tmp_path):
    watched = fit([EpisodeVideo(every_n_epochs=1, folder=str(tmp_path))])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch=0.mp4", "epoch=1.mp4"]
    assert all(path.stat().st_size for path in tmp_path.iterdir())
    assert torch.equal(watched.linear.weight, fit([]).linear.weight)


def test_predict_plays_and_writes_a_video(tmp_path):
    trainer = pl.Trainer(**QUIET, default_root_dir=tmp_path, callbacks=[EpisodeVideo()])
    (episodes,) = trainer.predict(SmallPolicy(2), datamodule=data())
    assert episodes.returns.tolist() == [6.0, 6.0]
    assert (tmp_path / "videos" / "predict.mp4").stat().st_size


def test_no_picture_is_a_warning_in_training_and_an_error_in_predict(tmp_path):
    callback = EpisodeVideo(every_n_epochs=2, folder=str(tmp_path))
    with pytest.warns(UserWarning, match="wrote no video: Counting takes no render_mode"):
        fit([callback], Counting)
    with pytest.raises(ValueError, match="takes no render_mode"):
        pl.Trainer(**QUIET, callbacks=[callback]).predict(SmallPolicy(2), datamodule=data(Counting))


def test_other_data_are_refused():
    with pytest.raises(TypeError, match="needs the datamodule Gymnasium"):
        pl.Trainer(**QUIET, callbacks=[EpisodeVideo()]).fit(SmallPolicy(2), datamodule=Digits())


def test_a_renderer_that_fails_is_named_with_what_helps(tmp_path):
    class Unrendered(Filmed):
        def render(self):
            raise RuntimeError("no OpenGL")

    with pytest.raises(ValueError, match=r"no video .*RuntimeError: no OpenGL.*MUJOCO_GL=egl.*played by `test`"):
        pl.Trainer(**QUIET, callbacks=[EpisodeVideo(folder=str(tmp_path))]).predict(
            SmallPolicy(2), datamodule=data(Unrendered)
        )
