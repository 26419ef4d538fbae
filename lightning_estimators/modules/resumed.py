"""A LightningModule that resumes exactly, in the middle of an epoch or of an accumulation window too."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from lightning_estimators.modules import schedules

__all__ = ["ResumedModule"]

_STATE = "estimator_module"  # key of what this class adds to a checkpoint


class ResumedModule(pl.LightningModule):
    """Keeps in checkpoints what Lightning does not: accumulated gradients, and what schedulers have seen."""

    def __init__(self) -> None:
        super().__init__()
        self._window_open = False  # whether gradients of an unfinished accumulation window are held
        self._plateau_stepped_at = -1  # batches trained when epoch-wise plateau schedulers last stepped
        self._resumed_metrics: dict[str, float] = {}
        self._resumed_gradients: dict[str, Tensor] = {}

    def on_fit_start(self) -> None:
        """Forget what belongs to an earlier run, unless it is being resumed."""
        super().on_fit_start()
        if self.trainer.ckpt_path is None:
            self._plateau_stepped_at = -1
            self._resumed_metrics, self._resumed_gradients = {}, {}

    def on_train_start(self) -> None:
        """Take up the accumulated gradients of an unfinished window."""
        for name, parameter in self.named_parameters():
            if name in self._resumed_gradients:
                saved = self._resumed_gradients[name].to(parameter.device)
                same = len(saved) == self.trainer.world_size
                parameter.grad = saved[self.global_rank].clone() if same else saved.mean(0)
        self._window_open = bool(self._resumed_gradients)
        self._resumed_gradients = {}

    def on_validation_model_zero_grad(self) -> None:
        """Free gradients before validation, but not those of an unfinished accumulation window."""
        if not self._window_open:
            super().on_validation_model_zero_grad()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what an exact resume needs.

        Args:
            checkpoint: What is about to be saved; gets one entry of numbers and tensors.
        """
        super().on_save_checkpoint(checkpoint)
        if not self._epoch_ends():
            _reopen_epoch(checkpoint)
        held = {n: p.grad for n, p in self.named_parameters() if p.grad is not None} if self._window_open else {}
        metrics = schedules.watched(self.trainer, self._resumed_metrics)
        checkpoint[_STATE] = {
            "plateau_stepped_at": self._plateau_stepped_at,
            "metrics": {name: float(value) for name, value in metrics.items()},
            # Not yet averaged over processes: every process gets its own back.
            "gradients": {n: self._gather(gradient).cpu() for n, gradient in held.items()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read back what `on_save_checkpoint` added.

        Args:
            checkpoint: What was saved.
        """
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get(_STATE)
        if state is not None:
            self._plateau_stepped_at = state["plateau_stepped_at"]
            self._resumed_metrics, self._resumed_gradients = state["metrics"], state["gradients"]

    def _epoch_ends(self) -> bool:
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        return progress.is_last_batch or progress.current.ready == self.trainer.num_training_batches

    def _gather(self, tensor: Tensor) -> Tensor:
        """Stack a tensor over processes, also when there is one."""
        gathered: Any = self.all_gather(tensor)  # one process: the tensor itself
        stacked: Tensor = gathered.reshape(self.trainer.world_size, *tensor.shape)
        return stacked


def _reopen_epoch(checkpoint: dict[str, Any]) -> None:
    """Let the run continue in the middle of an epoch: one cut by `max_steps` Lightning counts as finished."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
    for counts in progress["total"], progress["current"]:
        for stage in "processed", "completed":
            counts[stage] = min(counts[stage], max(counts["started"] - 1, 0))
