"""When Lightning hands what a training step logs to the loggers."""

from __future__ import annotations

import lightning.pytorch as pl

__all__ = ["ends_accumulation_window", "step_is_logged"]


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
