"""A callback that saves a checkpoint when the process is told to end by SIGTERM."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_estimators.arguments import CheckedArguments

__all__ = ["SaveOnSigterm"]

STATUS = 128 + signal.SIGTERM  # 143, the exit status that shells report for a process ended by this signal


class SaveOnSigterm(CheckedArguments, pl.Callback):
    """Saves a checkpoint when the process receives SIGTERM, and lets it exit with status 143.

    Schedulers of clusters and containers send SIGTERM some seconds before they kill a job. Lightning then finishes the
    batch and stops by `SIGTERMException`, without saving anything, and with status 0 as if training were done. With
    this callback it saves `last.ckpt` first, which `ckpt_path="last"` finds and from which the run continues with the
    next batch. A signal during `test`, `validate` or the sanity check saves nothing, and exits with the same status.

    The file is put in the folder of the first `ModelCheckpoint`, over its `last.ckpt` if it keeps one. A trainer
    without one (`enable_checkpointing=False`) saves nothing unless `dirpath` says where.

    With several processes it is enough that one of them receives the signal. They agree after each training batch, by
    one number that is exchanged, whether to stop; a signal during a validation takes effect after the batch that
    follows it.

    Args:
        dirpath: Folder of the checkpoint; None for that of the trainer's `ModelCheckpoint`.

    Example:
        >>> trainer = pl.Trainer(callbacks=[SaveOnSigterm()], logger=False, enable_checkpointing=False)
    """

    def __init__(self, dirpath: str | Path | None = None) -> None:
        super().__init__()
        self.dirpath = None if dirpath is None else os.path.expanduser(dirpath)
        self._received = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the place of Lightning's handler where there are several processes.

        Lightning's exchanges a number between the processes inside the handler, wherever each of them happens to be;
        if one of them is averaging gradients, all wait for ever. Lightning puts the handlers of before back at the end.
        """
        self._received = False
        if trainer.world_size > 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._receive)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop all processes at the same batch, if one of them was told to."""
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(self._received, all=False):
            raise SIGTERMException

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save, if it is SIGTERM that ends the training, and set the status of the process."""
        if not isinstance(exception, SIGTERMException):
            return
        exception.code = STATUS
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]  # set outside the class
            return
        path = self._path(trainer.checkpoint_callback)
        if path is not None:
            trainer.save_checkpoint(path)
            rank_zero_info(f"SIGTERM: saved {path!r} after step {trainer.global_step}.")

    def _receive(self, *_: Any) -> None:
        self._received = True

    def _path(self, saving: Checkpoint | None) -> str | None:
        """Return where the checkpoint goes, and tell the callback that keeps the others."""
        name = ModelCheckpoint.CHECKPOINT_NAME_LAST + ModelCheckpoint.FILE_EXTENSION
        if self.dirpath is not None:
            return os.path.join(self.dirpath, name)
        if not isinstance(saving, ModelCheckpoint) or saving.dirpath is None:
            return None
        saving.last_model_path = saving.last_model_path or os.path.join(saving.dirpath, name)
        return saving.last_model_path
