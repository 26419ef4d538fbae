"""A LightningModule that stops at the first step which is not finite."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_estimators.estimators import GradientEstimator

__all__ = ["FiniteModule", "all_finite", "nonfinite_names"]


class FiniteModule(pl.LightningModule, ABC):
    """Raises FloatingPointError where loss or gradients are not finite, before such gradients reach the weights.

    On a CUDA device the host would have to wait for the answer at every step. There a step that is not finite is taken
    with zeros in place of its gradients, and the error comes at the next step, checkpoint or end of the epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        self._verdict: _LateVerdict | None = None  # on the last step, where nobody waited for it

    @abstractmethod
    def estimators(self) -> dict[str, GradientEstimator]:
        """Return the estimators by their path in the module."""

    def on_fit_start(self) -> None:
        """Forget an earlier run."""
        super().on_fit_start()
        self._verdict = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to save weights that are not finite.

        Args:
            checkpoint: What is about to be saved.

        Raises:
            FloatingPointError: A parameter, or a statistic of an estimator, or the last step was not finite.
        """
        self._confirm_last_step()
        super().on_save_checkpoint(checkpoint)
        statistics = {f"{path}.{n}": b for path, e in self.estimators().items() for n, b in e.named_buffers()}
        if broken := nonfinite_names(dict(self.named_parameters()) | statistics):
            raise FloatingPointError(
                f"Not saving a checkpoint at step {self.global_step}: {', '.join(broken)} not finite. "
                "The last checkpoint is as it was; lower the learning rate and resume from it."
            )

    def _check_finite(self, loss: Tensor, costs: Tensor, batch_idx: int, gradients: Sequence[Tensor]) -> None:
        """Raise if the loss or a gradient is not finite, or the last step was not.

        Args:
            loss: Mean cost over all processes, so that all raise or none.
            costs: Per-example costs on this process.
            batch_idx: Index of the batch in its epoch.
            gradients: What the optimizers are about to use; set to zero where they wait for no answer.
        """
        finite = torch.stack([loss, all_finite(gradients).to(loss)]).isfinite().all()
        if not self._verdict_comes_late() or any(gradient.is_sparse for gradient in gradients):
            if not finite:
                raise FloatingPointError(self._describe(batch_idx, costs))
            return
        self._confirm_last_step()
        broken = finite.logical_not()
        for gradient in gradients:
            gradient.masked_fill_(broken, 0.0)
        self._verdict = _LateVerdict(finite, partial(self._describe, batch_idx, costs.detach(), self.global_step))

    def _verdict_comes_late(self) -> bool:
        """Whether the host would have to wait for the device to know if a step is finite."""
        return self.device.type == "cuda"

    def _confirm_last_step(self) -> None:
        """Raise if the last step that nobody waited for was not finite."""
        verdict, self._verdict = self._verdict, None
        if verdict is not None:
            verdict.confirm()

    def _describe(self, batch_idx: int, costs: Tensor, step: int | None = None) -> str:
        """Say at which step training broke, in which examples and parameters, and in what state the estimators are.

        Args:
            batch_idx: Index of the batch in its epoch.
            costs: Per-example costs of the failed step on this process.
            step: The failed step if others may have begun since, whose gradients were zeros in place of its own; None
                if it is the current one, which was not taken.
        """
        stopped = (
            "training stopped before the weights were changed"
            if step is None
            else "the weights saw zeros in place of its gradients, and training stopped at the next opportunity"
        )
        lines = [
            f"Non-finite loss or gradient at step {self.global_step if step is None else step} (epoch "
            f"{self.current_epoch}, batch {batch_idx}); {stopped}, and the last checkpoint is as it was."
        ]
        bad = int((~costs.isfinite()).sum())
        lines.append(f"  loss: {bad} of {costs.numel()} per-example costs on process {self.global_rank} are not finite")
        if step is None:
            lines.append(f"  gradients not finite: {_listed(_gradients(self))}")
        if weights := nonfinite_names(dict(self.named_parameters())):
            lines.append(f"  weights already not finite: {', '.join(weights)}")
        for path, estimator in self.estimators().items():
            state = ", ".join(f"{name}={value.item():.6g}" for name, value in estimator.diagnostics().items())
            lines.append(f"  {path} ({type(estimator).__name__}): {state or 'no diagnostics'}")
        lines.append(
            "Try a lower learning rate, or gradient_clip_val; Trainer(detect_anomaly=True) finds the operation."
        )
        return "\n".join(lines)


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

    def confirm(self) -> None:
        """Raise FloatingPointError if the step was not finite."""
        if self.arrived is not None:
            self.arrived.synchronize()
        if not self.finite:
            raise FloatingPointError(self.describe())


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """0-d tensor that is finite exactly when every entry of every tensor is."""
    dense = [tensor.coalesce().values() if tensor.is_sparse else tensor for tensor in tensors]
    if not dense:
        return torch.zeros(())
    if all(tensor.device.type == "cpu" and tensor.numel() and not tensor.is_complex() for tensor in dense):
        # There the norm takes ten times as long, a fifth of a small step. Sums keep infinities and NaN, and are a
        # quarter of the work of the magnitudes, which are looked at only where a sum may have overflowed.
        total = torch.stack([tensor.sum() for tensor in dense]).sum()
        if total.isfinite():
            return total
        return torch.stack([torch.stack(tensor.aminmax()).abs().max() for tensor in dense]).max()
    # The largest magnitude, unlike the Euclidean norm, cannot overflow when every entry is finite.
    return torch.nn.utils.get_total_norm(dense, norm_type=math.inf)


def nonfinite_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold infinities or NaN."""
    floating = {name: tensor.detach() for name, tensor in tensors.items() if tensor.is_floating_point()}
    return [name for name, tensor in floating.items() if not math.isfinite(all_finite([tensor]).item())]


def _gradients(module: nn.Module) -> list[str]:
    return nonfinite_names({name: p.grad for name, p in module.named_parameters() if p.grad is not None})


def _listed(names: list[str], limit: int = 12) -> str:
    rest = len(names) - limit
    return (", ".join(names[:limit]) or "none") + (f" and {rest} more" if rest > 0 else "")
