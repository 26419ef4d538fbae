"""A callback that logs the returns and lengths of episodes in training and in evaluation."""

from __future__ import annotations

from collections import deque
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_estimators.arguments import CheckedArguments
from lightning_estimators.logged_steps import step_is_logged
from lightning_estimators.rollout import Episodes, Rollout, ended_episodes

__all__ = ["EpisodeReturns"]


class EpisodeReturns(CheckedArguments, pl.Callback):
    """Logs how well a policy does, for a module that learns from `rollout.Rollout` batches.

    ===========================  ====================================================================================
    name                         meaning
    ===========================  ====================================================================================
    `train/episode_return`       undiscounted return, mean over the last `window` episodes that ended on each process
    `train/episode_length`       their mean number of steps
    `train/environment_steps`    steps in all environments of all processes since training began
    `val/episode_return`         mean over the evaluation episodes of all processes; `test/` likewise
    `val/episode_length`         their mean number of steps; `test/` likewise
    ===========================  ====================================================================================

    Those of training are logged every `Trainer(log_every_n_steps)` steps and at the last step of an epoch; nothing is
    logged before the first episode has ended. A run that is continued from a checkpoint starts the window anew. Every
    `ActingModule` has one; give one to the Trainer for another window, or for a policy that is none.

    Args:
        window: Number of episodes.

    Raises:
        ValueError: window is below 1.

    Example:
        >>> trainer = pl.Trainer(callbacks=[EpisodeReturns(window=20)], logger=False, enable_checkpointing=False)
    """

    def __init__(self, window: int = 100) -> None:
        super().__init__()
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window!r}.")
        self.window = window
        self._ended: deque[tuple[float, float]] = deque(maxlen=window)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the episodes of an earlier run."""
        self._ended.clear()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take in the episodes that ended in this batch, and log if it is time."""
        if not isinstance(batch, Rollout):
            return
        self._ended.extend(zip(*ended_episodes(batch), strict=True))
        if not (step_is_logged(trainer, batch_idx) or batch_idx + 1 >= trainer.num_training_batches):
            return
        sums = torch.tensor([*map(sum, zip(*self._ended, strict=True))] or [0.0, 0.0], dtype=torch.float32)
        sums = torch.cat([sums, torch.tensor([float(len(self._ended))])]).to(pl_module.device)
        total, length, count = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        shown: dict[str, Any] = {"on_step": True, "on_epoch": False}
        if count:
            pl_module.log("train/episode_return", total / count, prog_bar=True, **shown)
            pl_module.log("train/episode_length", length / count, **shown)
        batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        steps = batches * batch.rewards.numel() * trainer.world_size
        pl_module.log("train/environment_steps", float(steps), **shown)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Log the evaluation episodes."""
        _log_episodes(pl_module, "val", batch)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Log the evaluation episodes."""
        _log_episodes(pl_module, "test", batch)


def _log_episodes(module: pl.LightningModule, name: str, batch: Any) -> None:
    if isinstance(batch, Episodes):
        # Weighted by their number, since processes may have played different numbers.
        shown: dict[str, Any] = {
            "on_step": False,
            "on_epoch": True,
            "sync_dist": True,
            "batch_size": len(batch.returns),
        }
        module.log(f"{name}/episode_return", batch.returns.mean(), prog_bar=True, **shown)
        module.log(f"{name}/episode_length", batch.lengths.float().mean(), **shown)
