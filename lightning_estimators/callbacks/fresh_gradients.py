"""Statistics of the gradient from fresh estimates on one batch."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_estimators.counter_noise import counter_noise
from lightning_estimators.isolation import isolated
from lightning_estimators.model_parts import gradient_estimators, parameter_groups
from lightning_estimators.module_gradients import draw_gradients, training_loss
from lightning_estimators.modules import EstimatorModule
from lightning_estimators.moments import GradientMoments, GradientStatistics

__all__ = ["fresh_statistics"]

# Streams of noise from here on are free for callbacks; draw k uses stream 4 + k.
_FIRST_STREAM = 4


def fresh_statistics(
    trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int, num_samples: int
) -> dict[str, GradientStatistics]:
    """Estimate the gradient of the mean loss `num_samples` times on one batch, leaving no trace in the module.

    Args:
        trainer: Decides the precision; its processes all call this at the same time.
        module: At the weights to measure.
        batch: What the data loader yields.
        batch_idx: Index of the batch in its epoch; counter of the noise.
        num_samples: Estimates, at least 2.

    Returns:
        By group (`parameter_groups(module)`, and `logits/<path>` for each estimator), what holds for the gradient
        averaged over processes; equal on all of them.
    """
    groups, estimators = parameter_groups(module), gradient_estimators(module)
    moments = GradientMoments(per_entry=False)
    for k in range(num_samples):
        # Isolated one by one: a running statistic that has seen the draws before would not be the step's.
        context = trainer.precision_plugin.train_step_context()
        with isolated(module), torch.enable_grad(), _noise(trainer, module, k), context:
            drawn = draw_gradients(
                lambda: training_loss(module, batch, batch_idx, "GradientVariance"), groups, estimators
            )
        moments.update({name: gradient.unsqueeze(0) for name, gradient in drawn.named().items()})
    return {name: _over_processes(trainer, moments, name, shared=name in groups) for name in moments}


def _over_processes(trainer: pl.Trainer, moments: GradientMoments, name: str, *, shared: bool) -> GradientStatistics:
    """Return the statistics of the gradient averaged over processes.

    Args:
        trainer: Of the processes.
        moments: Of this process.
        name: Of the gradient.
        shared: Whether its entries are the same on every process (parameters), or each process has its own.
    """
    reduce, world = trainer.strategy.reduce, trainer.world_size
    here, mean = moments.statistics(name), moments.mean(name)
    if shared:
        # Noise is independent between processes: the variance of the average.
        variance = reduce(here.total_variance, reduce_op="mean") / world
        return GradientStatistics(variance, reduce(mean, reduce_op="mean").norm(), here.entries)
    # Data points of this process, whose share of the mean over all of them is 1/world as large.
    sums = torch.stack([here.total_variance / world**2, (mean / world).square().sum(), here.entries])
    variance, square, entries = reduce(sums, reduce_op="sum")
    return GradientStatistics(variance, square.sqrt(), entries)


def _noise(trainer: pl.Trainer, module: pl.LightningModule, draw: int) -> AbstractContextManager[None]:
    if isinstance(module, EstimatorModule):
        return module.noise(_FIRST_STREAM + draw)
    batches = trainer.fit_loop.epoch_loop.batch_progress.total.completed
    return counter_noise(module.device, torch.initial_seed(), _FIRST_STREAM + draw, batches, trainer.global_rank)
