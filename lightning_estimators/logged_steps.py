"""When Lightning hands what a training step logs to the loggers."""

from __future__ import annotations

import lightning.pytorch as pl

__all__ = ["ends_accumulation_window", "metric_is_read", "step_is_logged"]


def step_is_logged(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether what is logged during this training batch reaches the loggers.

    Ask before time is spent on figures that nobody would see.

    Args:
        trainer: In training, by automatic optimization.
        batch_idx: Index of the batch in its epoch.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]  # it has no logger, and shows everything in the bar
        return True
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    due = every > 0 and (trainer.global_step + 1) % every == 0
    return (due or trainer.should_stop) and ends_accumulation_window(trainer, batch_idx)


def ends_accumulation_window(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether an optimizer step follows this training batch.

    Args:
        trainer: In training, by automatic optimization.
        batch_idx: Index of the batch in its epoch.
    """
    if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or batch_idx + 1 >= trainer.num_training_batches:
        return True
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def metric_is_read(trainer: pl.Trainer, name: str, batch_idx: int) -> bool:
    """Whether the progress bar, the end of the epoch, a callback or a scheduler reads a metric of this training batch.

    Logging takes half a millisecond, as long as a step of a small model. The choice depends on counts alone, so that
    all processes, which average what they log, make the same one.

    Args:
        trainer: In training, by automatic optimization.
        name: Of a metric that is shown on the progress bar.
        batch_idx: Index of the batch in its epoch.
    """
    if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or batch_idx + 1 >= trainer.num_training_batches:
        return True
    bar = trainer.progress_bar_callback
    if bar is not None and not getattr(bar, "is_disabled", False):
        rate = getattr(bar, "refresh_rate", 1)
        # A bar that is drawn anew at every step shows a value of a few steps ago.
        every = max(rate, trainer.log_every_n_steps // 10)  # type: ignore[attr-defined]
        if rate and (batch_idx == 0 or (batch_idx + 1) % every == 0):
            return True
    watchers = [*trainer.callbacks, *trainer.lr_scheduler_configs]  # type: ignore[attr-defined]
    return any(getattr(watcher, "monitor", None) == name for watcher in watchers)
