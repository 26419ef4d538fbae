"""Every access to a part of another library that its authors keep to themselves.

Each function has a test that fails in words when the library changes it.
"""

from __future__ import annotations

import lightning.pytorch as pl

__all__ = ["set_logged_step"]


def set_logged_step(trainer: pl.Trainer, step: int) -> None:
    """Set the number by which Lightning's loggers place what is logged next.

    Args:
        trainer: In training.
        step: Optimizer steps taken.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped = step
