"""Mean and variance of the gradient, read from the moving averages that Adam keeps."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_estimators.chained_optimizer import ChainedOptimizer
from lightning_estimators.model_parts import parameter_groups
from lightning_estimators.moments import GradientStatistics, flatten

__all__ = ["model_optimizers", "moment_statistics", "refusal"]


def moment_statistics(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, GradientStatistics]:
    """Return mean and variance of the gradient for each group of parameters, from the states of the optimizers.

    Args:
        trainer: The Trainer, which holds the optimizers.
        module: The module, whose parameters form the groups (`parameter_groups`).

    Returns:
        The statistics by group, without groups whose parameters took fewer than two steps.

    Raises:
        TypeError: An optimizer keeps no first and second moments.
    """
    moments: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}
    for optimizer in model_optimizers(trainer, module):
        for options in optimizer.param_groups:
            for parameter in options["params"]:
                state = optimizer.state.get(parameter, {})
                if state and not {"exp_avg", "exp_avg_sq", "step"} <= state.keys():
                    raise TypeError(refusal(optimizer))
                # After a single step the averages are those of one gradient, which has no variance.
                if state and (step := float(state["step"])) > 1:
                    beta1, beta2 = options["betas"]
                    first, second = flatten([state["exp_avg"]]), flatten([state["exp_avg_sq"]])
                    moments[parameter] = first / (1 - beta1**step), second / (1 - beta2**step)
    statistics: dict[str, GradientStatistics] = {}
    for name, group in parameter_groups(module).items():
        known = [moments[parameter] for parameter in group if parameter in moments]
        if known:
            mean, square = (torch.cat(part) for part in zip(*known, strict=True))
            variance = (square - mean.square()).sum().clamp_min(0)
            statistics[name] = GradientStatistics(variance, mean.norm(), mean.new_tensor(mean.numel()))
    return statistics


def model_optimizers(trainer: pl.Trainer, module: pl.LightningModule) -> list[Optimizer]:
    """Return the optimizers of the model's parameters, without the one of the estimators' own parameters.

    Raises:
        TypeError: There is no such optimizer.
    """
    model = {parameter for group in parameter_groups(module).values() for parameter in group}
    optimizers = [
        part
        for optimizer in trainer.optimizers
        for part in (optimizer.parts.values() if isinstance(optimizer, ChainedOptimizer) else [optimizer])
    ]
    held = [o for o in optimizers if any(p in model for options in o.param_groups for p in options["params"])]
    if not held:
        raise TypeError(
            "GradientVariance(method='moments') reads Adam's moments, but the module has no optimizer for its "
            "parameters. Return one from configure_optimizers, or use method='fresh'."
        )
    return held


def refusal(optimizer: Optimizer) -> str:
    """Return the error message for an optimizer that keeps no first and second moments."""
    return (
        "GradientVariance(method='moments') reads the state `exp_avg` and `exp_avg_sq` that Adam, AdamW, NAdam and "
        f"RAdam keep; the module's optimizer is {type(optimizer).__name__}. Use one of those, or method='fresh'."
    )
