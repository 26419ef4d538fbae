"""What Lightning's checkpoints lack for a run to be continued exactly."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_estimators.private_api import set_logged_step

__all__ = ["ExactResume"]

_STATE = "exact_resume"  # key of what this class adds to a checkpoint


class ExactResume(pl.Callback):
    """Lets a run be continued from any checkpoint as if it had not been interrupted.

    Lightning's checkpoints hold weights, optimizers, schedulers, counters and the state of the data loader. This adds:

    - An epoch that `max_steps` cut short is not counted as finished, and one that follows a resumed one is counted as
      begun, so that a run that is continued again and again trains every batch once.
    - A scheduler that watches a metric steps after the checkpoint was saved, and Lightning leaves that step out in the
      continued run, or repeats it. Here it is done once.
    - The gradients of an unfinished accumulation window, each process's own (not where weights are sharded; a warning
      says so).

    A validation that was due between the batch of the checkpoint and the next one is skipped, as Lightning does.

    Every `EstimatorModule` has one; give it to the Trainer for a LightningModule that is none.

    Example:
        >>> trainer = pl.Trainer(callbacks=[ExactResume()], logger=False, enable_checkpointing=False)
    """

    def __init__(self) -> None:
        super().__init__()
        self._finished: tuple[int, int] | None = None  # epochs finished when the last batch began: total, this run
        self._steps_before: list[int] = []  # of each scheduler when the last batch began
        self._is_first_batch = True
        self._resumed: dict[str, Any] | None = None
        self._repeated: list[Any] = []  # schedulers that have done the step which Lightning is about to repeat

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget an earlier run."""
        self._is_first_batch = True
        self._finished, self._repeated = None, []
        if trainer.ckpt_path is None:
            self._resumed = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make up for what came after the checkpoint was saved."""
        self._catch_up(trainer, pl_module, "due")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do the same where there was nothing left to train, and what Lightning then leaves out."""
        self._catch_up(trainer, pl_module, "due", "due_after_validation")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note how many epochs are finished, and how many steps schedulers have done."""
        if self._is_first_batch and trainer.ckpt_path is not None and pl_module.automatic_optimization:
            # Lightning counts a step too many after a checkpoint that was saved between two batches.
            set_logged_step(trainer, trainer.global_step)
        self._is_first_batch = False
        progress: Any = trainer.fit_loop.epoch_progress
        self._finished = progress.total.processed, progress.current.processed
        self._steps_before = [getattr(c.scheduler, "last_epoch", 0) for c in trainer.lr_scheduler_configs]
        self._repeated = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do what Lightning leaves out at the end of the epoch that it continued."""
        if not trainer.fit_loop.restarting:
            return
        if pl_module.automatic_optimization:
            # One resumed at its end passes here a second time, after Lightning has counted a step too many.
            set_logged_step(trainer, trainer.global_step)
        if self._finished is not None and _epoch_ends(trainer):
            trainer.fit_loop.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what a continued run needs."""
        if self._finished is not None:
            epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]
            for counts, finished in zip((epochs["total"], epochs["current"]), self._finished, strict=True):
                # A run that was resumed at the end of an epoch does not count the next one as begun.
                counts["ready"] = counts["started"] = finished + 1
                if not _epoch_ends(trainer):
                    counts["processed"] = counts["completed"] = finished
        configs = trainer.lr_scheduler_configs
        watching = [index for index, config in enumerate(configs) if config.reduce_on_plateau]
        stepped = [
            i for i in watching if self._steps_before and configs[i].scheduler.last_epoch > self._steps_before[i]
        ]
        metrics = {str(configs[i].monitor): trainer.callback_metrics.get(str(configs[i].monitor)) for i in watching}
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        at_batch_end = progress.total.completed < progress.total.processed
        due = [i for i in watching if i not in stepped and self._is_due(trainer, configs[i])]
        checkpoint[_STATE] = {
            "metrics": {name: float(value) for name, value in metrics.items() if value is not None},
            "stepped": stepped,
            "due": [i for i in due if configs[i].interval == "epoch" or at_batch_end],
            # Lightning begins a run that it continues from here with the end of the batch, if it continues at all.
            "due_after_validation": [i for i in due if configs[i].interval == "step" and not at_batch_end],
            "gradients": _gradients(pl_module, trainer) if _window_is_open(trainer) else {},
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Read back what `on_save_checkpoint` added."""
        self._resumed = checkpoint.get(_STATE)

    def repeats(self, scheduler: Any) -> bool:
        """Whether a scheduler has already done the step that Lightning asks for, before the checkpoint was saved."""
        return any(scheduler is done for done in self._repeated)

    def _catch_up(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *due: str) -> None:
        resumed, self._resumed = self._resumed, None
        if resumed is None:
            return
        _put_gradients_back(pl_module, trainer, resumed["gradients"])
        trainer.callback_metrics.update(resumed["metrics"])
        configs = trainer.lr_scheduler_configs
        self._repeated = [configs[index].scheduler for index in resumed["stepped"] if index < len(configs)]
        for index in (index for name in due for index in resumed[name]):
            if index >= len(configs):  # the schedulers are others than those of the checkpoint
                continue
            monitor = configs[index].monitor
            if monitor in resumed["metrics"]:
                pl_module.lr_scheduler_step(configs[index].scheduler, resumed["metrics"][monitor])
            else:
                rank_zero_warn(
                    f"The scheduler that watches {monitor} misses a step: the checkpoint was saved before the "
                    "validation that computes it, which a continued run skips."
                )

    def _is_due(self, trainer: pl.Trainer, config: Any) -> bool:
        """Whether a scheduler that watches a metric will step for the last batch."""
        if self._finished is None:
            return False
        if config.interval == "epoch":
            return _epoch_ends(trainer)
        ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return ready % config.frequency == 0 and not _window_is_open(trainer)


def _gradients(module: pl.LightningModule, trainer: pl.Trainer) -> dict[str, Tensor]:
    """The gradients of all processes, which are not averaged yet, stacked by parameter."""
    held = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    if any(hasattr(gradient, "full_tensor") for gradient in held.values()):
        rank_zero_warn(
            "A checkpoint in the middle of an accumulation window does not hold its gradients where weights are "
            "sharded: continued from it, the step that ends the window sees fewer batches."
        )
        return {}
    gathered: dict[str, Any] = {name: module.all_gather(gradient) for name, gradient in held.items()}
    return {name: g.reshape(trainer.world_size, *held[name].shape).cpu() for name, g in gathered.items()}


def _put_gradients_back(module: pl.LightningModule, trainer: pl.Trainer, gradients: dict[str, Tensor]) -> None:
    for name, parameter in module.named_parameters():
        if name in gradients:
            saved = gradients[name].to(parameter.device)
            same = len(saved) == trainer.world_size
            parameter.grad = saved[trainer.global_rank].clone() if same else saved.mean(0)


def _epoch_ends(trainer: pl.Trainer) -> bool:
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return progress.is_last_batch or progress.current.ready == trainer.num_training_batches


def _window_is_open(trainer: pl.Trainer) -> bool:
    ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return ready % trainer.accumulate_grad_batches != 0 and not _epoch_ends(trainer)
