"""A callback that records videos of a policy's episodes."""

from __future__ import annotations

import os
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_estimators.arguments import CheckedArguments
from lightning_estimators.isolation import isolated

__all__ = ["EpisodeVideo"]


class EpisodeVideo(CheckedArguments, pl.Callback):
    """Records a video of one episode during training and after `Trainer.predict`; needs the datamodule `Gymnasium`.

    During training, the file `epoch=N.mp4` is written at the end of a validation, every `every_n_epochs` epochs. All
    episodes have the same seed, so that only the policy differs. `Trainer.predict` writes `predict.mp4`. The callback
    does not change training. If the environment cannot render images, it warns in training, and raises in `predict`.

    Args:
        every_n_epochs: Epochs between two videos.
        folder: Where to write; None for the folder `videos` beside the logs.

    Raises:
        ValueError: every_n_epochs is below 1.
        TypeError: At the start: the data are not of `Gymnasium`.

    Example:
        >>> trainer = pl.Trainer(callbacks=[EpisodeVideo()], logger=False, enable_checkpointing=False)
    """

    def __init__(self, every_n_epochs: int = 10, folder: str | None = None) -> None:
        super().__init__()
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1, got {every_n_epochs!r}.")
        self.every_n_epochs = every_n_epochs
        self.folder = folder

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse data that cannot be filmed."""
        if not callable(getattr(_data(trainer), "record", None)):
            raise TypeError(
                "EpisodeVideo needs the datamodule Gymnasium, given as trainer.fit(module, datamodule=data); got "
                f"{type(_data(trainer)).__name__}. Remove the callback, or use that datamodule."
            )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write a video if this epoch's turn has come."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning sets it by a function
            return
        if (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        try:
            self._write(trainer, pl_module, f"epoch={trainer.current_epoch}")
        except Exception as error:  # hours of training are worth more than a picture
            rank_zero_warn(f"EpisodeVideo wrote no video: {error}")

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write a video."""
        self._write(trainer, pl_module, "predict")

    def _write(self, trainer: pl.Trainer, module: pl.LightningModule, name: str) -> None:
        # All processes ask, since Lightning lets them agree on the folder.
        folder = self.folder or os.path.join(trainer.log_dir or trainer.default_root_dir, "videos")
        if not trainer.is_global_zero:
            return
        with isolated(module):
            module.eval()
            episodes = _data(trainer).record(folder, name)
        path = os.path.join(folder, f"{name}.mp4")
        rank_zero_info(f"A video of an episode with return {episodes.returns.item():.6g} is in {path}")


def _data(trainer: pl.Trainer) -> Any:
    return getattr(trainer, "datamodule", None)
