"""Stops training at the first step that is not finite, before it reaches the weights or a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lightning_estimators.model_parts import gradient_estimators

__all__ = ["FiniteTraining", "refuse_to_save_nonfinite"]


class FiniteTraining(pl.Callback):
    """Raises FloatingPointError where a loss or a gradient is not finite, before such a gradient reaches the weights.

    A gradient counts as not finite if the sum of its squares is not: Adam keeps squares, and one that overflows would
    stop a weight for ever. The running statistics of the estimators (moving averages of costs) are put back to what
    they were before the step, so that training may go on in the same process. Weights, statistics or states of
    optimizers that are not finite are not saved either.

    On a CUDA device the host would have to wait for the answer at every step. There a step that is not finite is taken
    with zeros in place of its gradients, and the error comes at the next step, checkpoint or end of the epoch. Under a
    gradient scaler (16-mixed) infinite gradients are the scaler's to skip, and only the loss is looked at.

    Every `EstimatorModule` has one; give it to the Trainer for a LightningModule that is none.

    Raises:
        FloatingPointError: With the step, the examples and parameters concerned, and the state of the estimators.

    Example:
        >>> trainer = pl.Trainer(callbacks=[FiniteTraining()], logger=False, enable_checkpointing=False)
    """

    def __init__(self) -> None:
        super().__init__()
        self._verdict: _LateVerdict | None = None  # on the last step, where nobody waited for it
        self._statistics: list[tuple[Tensor, Tensor]] = []
        self._watched: list[Tensor] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget an earlier run."""
        self._verdict = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the estimators' running statistics."""
        self._watched = list(_statistics(pl_module).values())

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the running statistics from before the step."""
        if self._verdict is None and batch_idx % trainer.accumulate_grad_batches == 0:
            self._statistics = [(buffer, buffer.clone()) for buffer in self._watched]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Raise if the loss or a gradient is not finite, or the last step was not."""
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        groups = [] if scaled else optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        costs: Tensor | None = getattr(pl_module, "latest_costs", None)
        squares = sum_of_squares(gradients)
        if DTensor in {type(gradient) for gradient in gradients}:  # each process has seen its shards
            squares = trainer.strategy.reduce(squares, reduce_op="mean")
        if costs is not None:
            # All processes must raise or none, and one may have costs that are not finite where gradients are.
            loss = trainer.strategy.reduce(costs.float().mean(), reduce_op="mean")
            squares = squares + loss.to(squares.device)  # finite only if both are
        finite = squares.isfinite()
        batch_idx = trainer.fit_loop.epoch_loop.batch_idx
        if not self._verdict_comes_late(pl_module) or True in {gradient.is_sparse for gradient in gradients}:
            if not finite:
                self._put_statistics_back()
                raise FloatingPointError(_describe(trainer, pl_module, batch_idx, costs))
            return
        self._confirm_last_step()
        broken = finite.logical_not()
        for gradient in gradients:
            gradient.masked_fill_(broken, 0.0)
        describe = partial(_describe, trainer, pl_module, batch_idx, costs, trainer.global_step)
        self._verdict = _LateVerdict(finite, describe)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss of a batch that was not followed by a step."""
        if trainer.accumulate_grad_batches > 1 and isinstance(outputs, Mapping):
            loss = trainer.strategy.reduce(outputs["loss"].detach(), reduce_op="mean")
            if not self._verdict_comes_late(pl_module) and not loss.isfinite():
                self._put_statistics_back()
                costs = getattr(pl_module, "latest_costs", None)
                raise FloatingPointError(_describe(trainer, pl_module, batch_idx, costs))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise if the last step of the epoch was not finite."""
        self._confirm_last_step()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to save what is not finite."""
        self._confirm_last_step()
        refuse_to_save_nonfinite(pl_module, checkpoint)

    def _verdict_comes_late(self, module: pl.LightningModule) -> bool:
        """Whether the host would have to wait for the device to know if a step is finite."""
        return module.device.type == "cuda"

    def _confirm_last_step(self) -> None:
        verdict, self._verdict = self._verdict, None
        if verdict is not None and not verdict.is_finite():
            self._put_statistics_back()
            raise FloatingPointError(verdict.describe())

    def _put_statistics_back(self) -> None:
        with torch.no_grad():
            for buffer, before in self._statistics:
                buffer.copy_(before)


def refuse_to_save_nonfinite(module: pl.LightningModule, checkpoint: Mapping[str, Any]) -> None:
    """Raise if weights, estimators' statistics or states of optimizers hold infinities or NaN.

    Args:
        module: Whose weights are saved.
        checkpoint: What is about to be saved.

    Raises:
        FloatingPointError: Naming what is not finite.
    """
    broken = nonfinite_names(dict(module.named_parameters()) | _statistics(module))
    for states in checkpoint.get("optimizer_states", ()):
        for index, state in states.get("state", {}).items():
            entries = {n: entry for n, entry in state.items() if isinstance(entry, Tensor)}
            broken += [f"{name} of parameter {index} in the optimizer" for name in nonfinite_names(entries)]
    if broken:
        raise FloatingPointError(
            f"Not saving a checkpoint at step {checkpoint.get('global_step')}: {_listed(broken)} not finite. "
            "The last checkpoint is as it was; lower the learning rate and resume from it."
        )


class _LateVerdict:
    """Whether a step was finite, on its way from the device: read one step later, nobody waits for it.

    Args:
        finite: 0-d boolean on any device.
        describe: Makes the message of the error.
    """

    def __init__(self, finite: Tensor, describe: Callable[[], str]) -> None:
        self.describe = describe
        self.finite, self.arrived = finite, None
        if finite.device.type == "cuda":
            self.finite = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
            self.arrived = torch.cuda.current_stream(finite.device).record_event()

    def is_finite(self) -> bool:
        if self.arrived is not None:
            self.arrived.synchronize()
        return bool(self.finite)


def sum_of_squares(tensors: Iterable[Tensor]) -> Tensor:
    """Return the sum of the squares of all entries on this process, or its root, 0-d; not finite if an entry is not."""
    dense = [tensor if type(tensor) is Tensor and not tensor.is_sparse else _local(tensor) for tensor in tensors]
    dense = [tensor for tensor in dense if tensor.numel()]
    if not dense:
        return torch.zeros(())
    if {tensor.device.type for tensor in dense} == {"cpu"}:
        # There the norm takes ten times as long, a fifth of a small step.
        flat = [tensor.detach().reshape(-1) for tensor in dense]
        return torch.stack([torch.vdot(t, t).real if t.is_complex() else torch.dot(t, t) for t in flat]).sum()
    return torch.nn.utils.get_total_norm(dense, norm_type=2.0)


def nonfinite_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold infinities or NaN."""
    floating = {name: _local(tensor.detach()) for name, tensor in tensors.items() if tensor.is_floating_point()}
    return [name for name, tensor in floating.items() if not sum_is_finite(tensor)]


def sum_is_finite(tensor: Tensor) -> bool:
    """Return whether all entries are finite: looked at one by one only where their sum is not."""
    return math.isfinite(tensor.sum().item()) or bool(tensor.isfinite().all())


def _local(tensor: Tensor) -> Tensor:
    """The entries that this process holds."""
    tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return tensor.coalesce().values() if tensor.is_sparse else tensor


def _statistics(module: pl.LightningModule) -> dict[str, Tensor]:
    estimators = gradient_estimators(module).items()
    return {f"{path}.{name}": buffer for path, estimator in estimators for name, buffer in estimator.named_buffers()}


def _describe(
    trainer: pl.Trainer, module: pl.LightningModule, batch_idx: int, costs: Tensor | None, step: int | None = None
) -> str:
    """Say at which step training broke, in which examples and parameters, and in what state the estimators are.

    Args:
        trainer: Counts the steps.
        module: What was trained.
        batch_idx: Index of the batch in its epoch.
        costs: Per-example costs of the failed step on this process, if the module has them.
        step: The failed step if others may have begun since, whose gradients were zeros in place of its own; None
            if it is the current one, which was not taken.
    """
    stopped = (
        "training stopped before the weights were changed"
        if step is None
        else "the weights saw zeros in place of its gradients, and training stopped at the next opportunity"
    )
    lines = [
        f"Non-finite loss or gradient at step {trainer.global_step if step is None else step} (epoch "
        f"{trainer.current_epoch}, batch {batch_idx}); {stopped}, and the last checkpoint is as it was."
    ]
    if costs is not None:
        bad = int((~costs.isfinite()).sum())
        lines.append(f"  loss: {bad} of {costs.numel()} per-example costs on process {trainer.global_rank} not finite")
    if step is None:
        gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        broken = nonfinite_names(gradients)
        lines.append(f"  gradients not finite: {_listed(broken)}")
        squares = [n for n, g in gradients.items() if n not in broken and not sum_of_squares([g]).isfinite()]
        if squares:
            lines.append(f"  gradients whose squares overflow: {_listed(squares)}")
    if weights := nonfinite_names(dict(module.named_parameters())):
        lines.append(f"  weights already not finite: {_listed(weights)}")
    for path, estimator in gradient_estimators(module).items():
        state = ", ".join(f"{name}={value.item():.6g}" for name, value in estimator.diagnostics().items())
        lines.append(f"  {path} ({type(estimator).__name__}): {state or 'no diagnostics'}")
    lines.append(
        "Try a lower learning rate, or Trainer(gradient_clip_val=...). "
        "Trainer(detect_anomaly=True) finds the operation."
    )
    return "\n".join(lines)


def _listed(names: list[str], limit: int = 12) -> str:
    rest = len(names) - limit
    return (", ".join(names[:limit]) or "none") + (f" and {rest} more" if rest > 0 else "")
