"""Statistics of the gradient from fresh estimates on one batch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_estimators.callbacks.isolation import isolated
from lightning_estimators.counter_noise import counter_noise
from lightning_estimators.distributions import distribution_parameters
from lightning_estimators.model_parts import gradient_estimators, parameter_groups
from lightning_estimators.modules import EstimatorModule
from lightning_estimators.moments import GradientMoments, GradientStatistics, flatten

__all__ = ["fresh_statistics"]

# Streams of noise from here on are free for callbacks; draw k uses stream 4 + k.
_FIRST_STREAM = 4

Calls = dict[str, list[list[Tensor]]]
"""Per path of an estimator, per call, the parameters of q that a gradient can flow into."""


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
    groups = parameter_groups(module)
    moments = GradientMoments(per_entry=False)
    for k in range(num_samples):
        # Isolated one by one: a running statistic that has seen the draws before would not be the step's.
        context = trainer.precision_plugin.train_step_context()
        with isolated(module), torch.enable_grad(), _noise(trainer, module, k), context:
            gradients = _gradients(module, groups, batch, batch_idx)
        moments.update({name: gradient.unsqueeze(0) for name, gradient in gradients.items()})
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


def _loss(module: pl.LightningModule, batch: Any, batch_idx: int) -> Tensor:
    if isinstance(module, EstimatorModule):
        return module.loss(batch).mean()
    takes_index = len(inspect.signature(module.training_step).parameters) > 1
    answer = module.training_step(batch, batch_idx) if takes_index else module.training_step(batch)
    loss = answer["loss"] if isinstance(answer, Mapping) else answer
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"GradientVariance needs a loss: {type(module).__name__}.training_step must return a tensor, or a mapping "
            f"with one under 'loss', got {type(answer).__name__}."
        )
    return loss


def _gradients(
    module: pl.LightningModule, groups: dict[str, list[nn.Parameter]], batch: Any, batch_idx: int
) -> dict[str, Tensor]:
    with _recorded(module) as calls:
        loss = _loss(module, batch, batch_idx)
    parameters = [parameter for group in groups.values() for parameter in group]
    latent = [tensor for of_path in calls.values() for call in of_path for tensor in call]
    # Never `backward`: it would accumulate in .grad and set off the hooks of DistributedDataParallel.
    found = iter(torch.autograd.grad(loss, [*parameters, *latent], allow_unused=True))
    gradients = {name: _joined([(next(found), p) for p in group]) for name, group in groups.items()}
    for path, of_path in calls.items():
        answers = [[(next(found), tensor) for tensor in call] for call in of_path]
        # An enclosing estimator may evaluate its cost at points that the loss does not depend on.
        reached = [call for call in answers if any(gradient is not None for gradient, _ in call)]
        if reached:
            gradients[f"logits/{path}"] = _joined(reached[0])
    return gradients


@contextmanager
def _recorded(module: pl.LightningModule) -> Iterator[Calls]:
    estimators = gradient_estimators(module)
    calls: Calls = {path: [] for path in estimators}
    handles = []
    for path, estimator in estimators.items():

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path) -> None:
            q = args[0] if args else kwargs["q"]
            attached = [tensor for tensor in distribution_parameters(q).values() if tensor.requires_grad]
            if torch.is_grad_enabled() and attached:
                calls[path].append(attached)

        handles.append(estimator.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _joined(answers: Sequence[tuple[Tensor | None, Tensor]]) -> Tensor:
    return flatten([torch.zeros_like(tensor) if gradient is None else gradient for gradient, tensor in answers])
