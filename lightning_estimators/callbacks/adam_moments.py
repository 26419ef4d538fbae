"""Statistics of the gradient from the moving averages that Adam keeps."""

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
    """Read mean and variance of the gradient, per parameter group, from the state of the model's optimizers.

    Args:
        trainer: Holds the optimizers.
        module: Names the groups.

    Returns:
        By group; without groups whose parameters took fewer than two steps.

    Raises:
        TypeError: An optimizer has taken a step and keeps no first and second moments.
    """
    moments: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}
    for optimizer in model_optimizers(trainer, module):
        for options in optimizer.param_groups:
            for parameter in options["params"]:
                state = optimizer.state.get(parameter, {})
                if state and not {"exp_avg", "exp_avg_sq", "step"} <= state.keys():
                    raise TypeError(refusal(optimizer))
                # After the first step there is one gradient, and no variance.
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
    """Return the optimizers that hold the model's parameters; that of the estimators may be of any kind.

    Raises:
        TypeError: There is none.
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
    """Return what to say of an optimizer without first and second moments."""
    return (
        "GradientVariance(method='moments') reads the state `exp_avg` and `exp_avg_sq` that Adam, AdamW, NAdam and "
        f"RAdam keep; the module's optimizer is {type(optimizer).__name__}. Use one of those, or method='fresh'."
    )
