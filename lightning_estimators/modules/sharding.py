"""Training estimators in a model whose weights are divided (sharded) among processes."""

from __future__ import annotations

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lightning_estimators.model_parts import gradient_estimators
from lightning_estimators.running_statistics import RunningStatistics

__all__ = ["AverageWholeParameters"]


class AverageWholeParameters(pl.Callback):
    """In a sharded model, averages the gradients of all parameters that are not sharded over processes.

    Under Lightning's `ModelParallelStrategy`, the module's `configure_model` shards large networks by torch's
    `fully_shard`. It averages the gradients of the parameters that it shards, and of no others. It cannot shard single
    numbers, such as a temperature or the scale of a control variate, so the parameters of estimators are left whole.
    Without this callback, every process would train different ones.

    The parameters of an estimator must not be sharded. `REBAR` and `RelaxedREBAR` learn by a second derivative of the
    cost, which torch cannot compute through sharded weights, so they are refused if any part of the model is sharded.

    Every `EstimatorModule` has this callback; for any other LightningModule, give one to the Trainer.

    Raises:
        ValueError: At the start of training, naming the estimator and what works instead.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse what torch cannot do, and let baselines average over processes, as they do under DDP."""
        if isinstance(trainer.strategy, ModelParallelStrategy):
            for part in pl_module.modules():
                if isinstance(part, RunningStatistics) and part.average_over_processes is None:
                    part.average_over_processes = True
        sharded = {parameter for parameter in pl_module.parameters() if isinstance(parameter, DTensor)}
        for path, estimator in gradient_estimators(pl_module).items():
            own = {parameter for parameter in estimator.parameters() if parameter.requires_grad}
            name = type(estimator).__name__
            if own & sharded:
                raise ValueError(
                    f"the parameters of {path} ({name}) are sharded, but what an estimator learns has a gradient of "
                    "its own, which torch's fully_shard does not see. Shard the model's networks, and leave the "
                    "estimator whole: its gradients are averaged over processes."
                )
            if sharded and own and estimator.gradient_of_f != "none" and estimator.learns_variance:
                raise ValueError(
                    f"{path} ({name}) learns by the derivative of the gradient of the cost, which torch cannot take "
                    f"through sharded weights. Use {name} without learned parameters, or RELAX, REINFORCE, "
                    'StochasticBackprop or Concrete; or strategy="ddp", which shards nothing.'
                )

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Average the gradients that torch does not average."""
        if not isinstance(trainer.strategy, ModelParallelStrategy):
            return
        mesh = trainer.strategy.device_mesh["data_parallel"]
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not isinstance(parameter, DTensor):
                    dist.all_reduce(parameter.grad, group=mesh.get_group())
                    parameter.grad /= mesh.size()
