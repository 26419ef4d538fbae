"""A LightningModule whose noise depends on the seed and the number of the batch only, so that runs can be resumed."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_estimators.counter_noise import counter_noise

__all__ = ["EvaluationNoise", "SeededModule", "attached_trainer"]

TRAIN, VALIDATE, TEST, PREDICT, CALLBACKS = range(5)
"""Streams of noise; callbacks may use `CALLBACKS` and all numbers above it."""


def attached_trainer(module: pl.LightningModule) -> pl.Trainer | None:
    """Return the Trainer that a module is attached to, or None if there is none."""
    if module.fabric is not None:  # then `module.trainer` is no Trainer
        return None
    try:
        return module.trainer
    except RuntimeError:  # how Lightning says that there is none
        return None


class SeededModule(pl.LightningModule):
    """Seeds the noise of every step by four numbers: the run's seed, the stream, the batch's number, and the process.

    A stream is a purpose of noise, such as training or validation. So processes draw independent noise, validation does
    not change the noise of training, and a run resumed from a checkpoint continues bit for bit if its data loader does.
    In training, batches are numbered over the whole run. In evaluation, they are numbered from the beginning of the
    loader, so a model is evaluated with the same noise during training and later. Outside of the steps, the states of
    torch's generators are left to the user.

    The run's seed is that of `seed_everything`, unless torch was seeded differently afterwards. Without it, it is the
    seed in the loaded checkpoint. Without either, it is drawn from torch's generator when it is first needed, and is
    the same for all processes. Checkpoints keep it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seed: int | None = None
        self._seed_was_loaded = False

    def noise(self, stream: int, batch_idx: int = 0, dataloader_idx: int = 0) -> AbstractContextManager[None]:
        """Return a context in which torch's global generators are seeded; they are as before when it ends.

        Args:
            stream: `TRAIN`, `VALIDATE`, `TEST` and `PREDICT` are 0 to 3; callbacks take numbers from 4 on.
            batch_idx: Index of the batch in its epoch; training and callbacks count the run's batches instead.
            dataloader_idx: Index of the data loader.
        """
        evaluates = stream in (VALIDATE, TEST, PREDICT)
        # Unlike `batch_idx`, batches trained never repeat; unlike `global_step`, they count while gradients accumulate.
        counters = (batch_idx, dataloader_idx) if evaluates else (self.batches_trained(), 0)
        return counter_noise(self.device, self.noise_seed(), stream, *counters, self.global_rank)

    def batches_trained(self) -> int:
        """Return how many training batches the run has completed, over all epochs and resumptions."""
        trainer = attached_trainer(self)
        return 0 if trainer is None else trainer.fit_loop.epoch_loop.batch_progress.total.completed

    def noise_seed(self) -> int:
        """Return the seed of the run's noise, the same on all processes."""
        if self._seed is None or (self._seed_was_loaded and _seed_everything() is not None):
            given = _seed_everything()
            if given is None:
                given = int(torch.randint(2**63 - 1, ()))
            trainer = attached_trainer(self)
            self._seed = given if trainer is None else trainer.strategy.broadcast(given)
            self._seed_was_loaded = False
        return self._seed

    def forget_seed(self) -> None:
        """Take another seed when noise is next drawn, as a new run does."""
        self._seed, self._seed_was_loaded = None, False

    def load_seed(self, seed: int | None) -> None:
        """Use the seed of the run that saved a checkpoint."""
        self._seed, self._seed_was_loaded = seed, seed is not None


class EvaluationNoise(pl.Callback):
    """Seeds the batches of evaluation of a `SeededModule`, and forgets the seed of earlier runs."""

    def __init__(self) -> None:
        super().__init__()
        self._open = ExitStack()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # a copy of the module made during a step must not restore the generators

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._open = ExitStack()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the seed of an earlier run, unless one is being resumed; agree on it before a step needs it."""
        if isinstance(pl_module, SeededModule) and trainer.ckpt_path is None:
            pl_module.forget_seed()
        self._agree(trainer, pl_module)

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Seed a batch."""
        self._seed(pl_module, VALIDATE, *args)

    def on_test_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Seed a batch."""
        self._seed(pl_module, TEST, *args)

    def on_predict_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Seed a batch."""
        self._seed(pl_module, PREDICT, *args)

    def _agree(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Agree on the seed before processes may differ in what they do."""
        if isinstance(pl_module, SeededModule):
            pl_module.noise_seed()

    def _give_back(self, *_: Any, **__: Any) -> None:
        """Restore the states of torch's generators."""
        self._open.close()

    on_validation_start = on_test_start = on_predict_start = _agree
    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = on_exception = _give_back

    def _seed(
        self, module: pl.LightningModule, stream: int, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._open.close()
        if isinstance(module, SeededModule):
            self._open.enter_context(module.noise(stream, batch_idx, dataloader_idx))


def _seed_everything() -> int | None:
    """Return the seed of Lightning's `seed_everything`; None if it was not called, or torch was seeded again later."""
    given = os.environ.get("PL_GLOBAL_SEED")
    return int(given) if given is not None and int(given) == torch.initial_seed() else None
