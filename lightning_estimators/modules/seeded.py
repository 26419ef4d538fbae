"""A LightningModule whose noise is a function of counters, not of history."""

from __future__ import annotations

import hashlib
import os
import struct
from typing import Any

import lightning.pytorch as pl
import torch

__all__ = ["SeededModule"]


class SeededModule(pl.LightningModule):
    """Seeds torch's generators at every step from the run's seed, the stream, its counter, and the process.

    Processes draw independent noise, validation does not shift the noise of training, and a run resumed from any
    checkpoint continues bit for bit if its data loader does. The run's seed is that of `seed_everything`; without it,
    that of the checkpoint being resumed; without either, it is drawn from torch's generator when it is first needed,
    and is the same on all processes. Checkpoints keep it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seed: int | None = None

    def seed_noise(self, stream: int, batch_idx: int) -> None:
        """Seed torch's global generators: that of the CPU and that of the module's device.

        Args:
            stream: 0 to train, 1 to validate, 2 to test, 3 to predict, 4 and above for callbacks. The training stream
                counts batches over the whole run; the others count `global_step` and `batch_idx`.
            batch_idx: Index of the batch in its epoch.
        """
        if stream == 0:
            # Unlike `batch_idx` these never repeat, and unlike `global_step` they count while gradients accumulate.
            counter, batch_idx = self.batches_trained(), 0
        else:
            counter = self.global_step
        key = struct.pack("<5Q", self._run_seed(), stream, counter, batch_idx, self.global_rank)
        # A hash, so that no two sets of counters meet as sums of them would.
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
        # Not torch.manual_seed: where CUDA is not in use it formats a stack trace at every call.
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def batches_trained(self) -> int:
        """Return how many training batches the run has completed, over all epochs and resumptions."""
        return 0 if self._trainer is None else self.trainer.fit_loop.epoch_loop.batch_progress.total.completed

    def on_fit_start(self) -> None:
        """Forget the seed of an earlier run, unless one is being resumed."""
        super().on_fit_start()
        if self.trainer.ckpt_path is None:
            self._seed = None

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Seed the noise of validation."""
        self.seed_noise(1, batch_idx)

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Seed the noise of testing."""
        self.seed_noise(2, batch_idx)

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Seed the noise of prediction."""
        self.seed_noise(3, batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the run's seed.

        Args:
            checkpoint: What is about to be saved.
        """
        super().on_save_checkpoint(checkpoint)
        checkpoint["noise_seed"] = self._run_seed()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the seed of the run that saved the checkpoint.

        Args:
            checkpoint: What was saved.
        """
        super().on_load_checkpoint(checkpoint)
        self._seed = checkpoint.get("noise_seed")

    def _run_seed(self) -> int:
        if (chosen := os.environ.get("PL_GLOBAL_SEED")) is not None:
            return int(chosen)
        if self._seed is None:
            drawn = int(torch.randint(2**63 - 1, ()))
            self._seed = drawn if self._trainer is None else self.trainer.strategy.broadcast(drawn)
        return self._seed
