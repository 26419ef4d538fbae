"""Mean and variance of the gradient, from repeated estimates on one batch."""

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
    """Estimate the gradient of the mean loss `num_samples` times on one batch, without changing the module.

    All processes must call this at the same time.

    Args:
        trainer: The Trainer, whose precision is used.
        module: The module, with the weights at which to measure.
        batch: A batch of the data loader.
        batch_idx: Index of the batch in its epoch.
        num_samples: Number of estimates, at least 2.

    Returns:
        The statistics of the gradient averaged over processes, the same on all of them. They are given for each group
        in `parameter_groups(module)`, and as `logits/<path>` for each estimator.
    """
    groups, estimators = parameter_groups(module), gradient_estimators(module)
    moments = GradientMoments(per_entry=False)
    for k in range(num_samples):
        # The module is restored after every estimate: running averages must be the same for all of them.
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
        shared: Whether the gradient is that of parameters, which all processes share, or that of the logits of data
            points, of which each process has its own.
    """
    reduce, world = trainer.strategy.reduce, trainer.world_size
    here, mean = moments.statistics(name), moments.mean(name)
    if shared:
        # Noise is independent between processes, so this is the variance of the average over processes.
        variance = reduce(here.total_variance, reduce_op="mean") / world
        return GradientStatistics(variance, reduce(mean, reduce_op="mean").norm(), here.entries)
    # The loss is a mean over the data points of all processes, so a data point's gradient is 1/world as large.
    sums = torch.stack([here.total_variance / world**2, (mean / world).square().sum(), here.entries])
    variance, square, entries = reduce(sums, reduce_op="sum")
    return GradientStatistics(variance, square.sqrt(), entries)


def _noise(trainer: pl.Trainer, module: pl.LightningModule, draw: int) -> AbstractContextManager[None]:
    if isinstance(module, EstimatorModule):
        return module.noise(_FIRST_STREAM + draw)
    batches = trainer.fit_loop.epoch_loop.batch_progress.total.completed
    return counter_noise(module.device, torch.initial_seed(), _FIRST_STREAM + draw, batches, trainer.global_rank)
