"""The LightningModule under every model: a loss per example, one backward, two optimizers."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from lightning_estimators.estimators import GradientEstimator
from lightning_estimators.modules import schedules
from lightning_estimators.modules.finite import FiniteModule
from lightning_estimators.modules.recorded import RecordedModule
from lightning_estimators.modules.resumed import ResumedModule
from lightning_estimators.modules.safeguards import check_callable, check_costs, refuse_unsupported
from lightning_estimators.modules.seeded import SeededModule

__all__ = ["EstimatorModule"]


class EstimatorModule(RecordedModule, SeededModule, FiniteModule, ResumedModule, ABC):
    r"""Trains a model and the gradient estimators inside it, each with an optimizer of its own.

    Every training step is one forward pass, one backward of the mean cost, which fills the gradients of the model and
    of the estimators' own parameters (baselines, temperatures, surrogate networks) at once, one step of
    `surrogate_optimizer` on the latter and one step of `optimizer` on everything else. Together they count as one
    `global_step`. The optimization is manual in Lightning's sense, so clipping and accumulation are arguments here,
    not of the Trainer; schedulers, checkpoints, `max_steps`, precision (but 16-mixed and 16-true), DDP and resuming
    are as usual.

    Noise is counter-based (`SeededModule`): processes draw independent noise, and a run resumed from any checkpoint
    continues bit for bit if its data loader does. (Lightning skips a validation that was due between the batch after
    which the checkpoint was saved and the next one, so its figures are missing.)

    Implementing one:

    1. Build networks and estimators in `__init__`, after `super().__init__(...)`; call `estimator.prepare(q, context)`
       there with a distribution like those that will come.
    2. Implement `loss(batch)`: the costs to minimise, one per example.
    3. Hooks that are overridden call `super()`. Avoid attributes named `layer` and `saved_models`, through which
       Lightning's `ModelCheckpoint` swaps weights.

    Logged:
        `train/loss`: mean cost of the batch over all processes, at every step; in the progress bar.
        `estimator/<path>/<name>`: the figures of `GradientEstimator.diagnostics` of the estimator at `<path>` in the
            module, averaged over processes, every `Trainer(log_every_n_steps)` batches.

    Args:
        optimizer: Makes the optimizer of all parameters that are not an estimator's.
        surrogate_optimizer: Makes the optimizer of the estimators' own parameters; unused when there are none. A
            parameter that an estimator shares with the model counts as the estimator's.
        lr_scheduler: Makes the scheduler of `optimizer`; none by default. For `ReduceLROnPlateau` take the class of
            `lightning.pytorch.cli`, whose `monitor` names a logged metric.
        surrogate_lr_scheduler: The same for `surrogate_optimizer`.
        lr_scheduler_interval: Whether schedulers step at the end of every training "epoch" or after every optimizer
            "step".
        gradient_clip_val: Bound on the gradients of each optimizer's group, None for none. Hooks see the gradient
            before clipping in `on_after_backward`, after it in `on_before_optimizer_step`.
        gradient_clip_algorithm: Bound the Euclidean "norm" of the group or the "value" of each entry.
        accumulate_grad_batches: Batches whose gradients are averaged for one step of the optimizers; the last window of
            an epoch may be incomplete and is divided by the same number. Loggers count batches, `global_step`
            optimizer steps.

    Raises:
        ValueError: An argument is out of range; or, when `fit` starts, the Trainer has an option that cannot work.
        TypeError: An optimizer or scheduler is not a callable that makes one.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Independent
        >>> from lightning_estimators.estimators import REBAR
        >>> class Coin(EstimatorModule):
        ...     def __init__(self):
        ...         super().__init__(optimizer=torch.optim.SGD)
        ...         self.logits = torch.nn.Parameter(torch.zeros(3))
        ...         self.estimator = REBAR()
        ...     def loss(self, batch):
        ...         q = Independent(Bernoulli(logits=self.logits.expand(len(batch), 3)), 1)
        ...         return self.estimator(q, lambda b: (b - 0.499).square().sum(-1))
        >>> coin = Coin()
        >>> coin.loss(torch.zeros(5, 1)).shape
        torch.Size([5])
        >>> list(coin.estimators()), list(coin.parameter_groups())
        (['estimator'], ['logits'])
    """

    def __init__(
        self,
        *,
        optimizer: OptimizerCallable = torch.optim.Adam,
        surrogate_optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        surrogate_lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] = "norm",
        accumulate_grad_batches: int = 1,
    ) -> None:
        super().__init__()
        check_callable("optimizer", optimizer)
        check_callable("surrogate_optimizer", surrogate_optimizer)
        check_callable("lr_scheduler", lr_scheduler, optional=True)
        check_callable("surrogate_lr_scheduler", surrogate_lr_scheduler, optional=True)
        if lr_scheduler_interval not in ("epoch", "step"):
            raise ValueError(f'lr_scheduler_interval must be "epoch" or "step", got {lr_scheduler_interval!r}.')
        if gradient_clip_algorithm not in ("norm", "value"):
            raise ValueError(f'gradient_clip_algorithm must be "norm" or "value", got {gradient_clip_algorithm!r}.')
        if gradient_clip_val is not None and not gradient_clip_val > 0:
            raise ValueError(f"gradient_clip_val must be positive, or None to not clip, got {gradient_clip_val!r}.")
        if not isinstance(accumulate_grad_batches, int) or accumulate_grad_batches < 1:
            raise ValueError(f"accumulate_grad_batches must be a positive integer, got {accumulate_grad_batches!r}.")
        self.automatic_optimization = False
        self.optimizer = optimizer
        self.surrogate_optimizer = surrogate_optimizer
        self.lr_scheduler = lr_scheduler
        self.surrogate_lr_scheduler = surrogate_lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm = gradient_clip_algorithm
        self.accumulate_grad_batches = accumulate_grad_batches

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """Return the costs to minimise, one per example, shape (B,), with gradients attached.

        Args:
            batch: What the data loader yields.
        """

    def batch_size(self, batch: Any) -> int | None:
        """Return how many costs `loss` must return for this batch: the leading dimension of its first tensor.

        Override it where examples do not lie along that dimension; None skips the check.

        Args:
            batch: What the data loader yields.
        """
        while isinstance(batch, Mapping | Sequence) and not isinstance(batch, str) and len(batch):
            batch = next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0]
        return len(batch) if isinstance(batch, Tensor) and batch.ndim else None

    def estimators(self) -> dict[str, GradientEstimator]:
        """Return the estimators by their path in the module, outermost first; none from inside another estimator."""
        found: dict[str, GradientEstimator] = {}
        for path, module in self.named_modules():
            if isinstance(module, GradientEstimator) and not any(path.startswith(f"{outer}.") for outer in found):
                found[path] = module
        return found

    def surrogate_parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters of all estimators, each once."""
        parameters = (p for estimator in self.estimators().values() for p in estimator.parameters() if p.requires_grad)
        return list(dict.fromkeys(parameters))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the model's trainable parameters by top-level attribute, those of estimators excluded."""
        surrogate = set(self.surrogate_parameters())
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and parameter not in surrogate:
                groups.setdefault(name.partition(".")[0], []).append(parameter)
        return groups

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Do one backward and, where an accumulation window ends, one step of both optimizers.

        Args:
            batch: What the data loader yields.
            batch_idx: Index of the batch in its epoch.

        Returns:
            The mean cost, detached.

        Raises:
            ValueError: `loss` returned no costs of shape (B,).
            FloatingPointError: The loss or a gradient is not finite; the weights are those before the step. On a CUDA
                device, which would stand still while the host waits for the answer, the step is taken with zeros in
                place of its gradients, and the error comes at the next step, checkpoint or end of the epoch.
        """
        self.seed_noise(0, batch_idx)
        optimizers = self._both_optimizers()
        if batch_idx % self.accumulate_grad_batches == 0:
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
        costs = self.loss(batch)
        check_costs(f"{type(self).__name__}.loss(batch)", costs, self.batch_size(batch))
        loss = costs.mean()
        window_ends = (batch_idx + 1) % self.accumulate_grad_batches == 0 or self._epoch_ends()
        with nullcontext() if window_ends else self._blocked_sync():
            self.manual_backward(loss / self.accumulate_grad_batches)
        self._window_open = not window_ends
        logged = self._mean_over_ranks(loss)
        # Gradients of an open window are not averaged yet; what is wrong with them is still there when it ends.
        self._check_finite(logged, costs, batch_idx, _gradients(optimizers) if window_ends else [])
        self.log("train/loss", logged, prog_bar=True, on_step=True, on_epoch=False)
        if self.trainer._logger_connector.should_update_logs or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            for path, estimator in self.estimators().items():
                for name, figure in estimator.diagnostics().items():
                    self.log(f"estimator/{path}/{name}", figure, on_step=True, on_epoch=False, sync_dist=True)
        if window_ends:
            self._step(optimizers)
        # Here and not in on_train_batch_end: checkpoints are saved before that hook, and would miss the step.
        by_step = self.lr_scheduler_interval == "step"
        if window_ends if by_step else self._epoch_ends():
            schedules.step(self, plateau=False, resumed=self._resumed_metrics)
        if window_ends and by_step:
            schedules.step(self, plateau=True, resumed=self._resumed_metrics)
        return logged

    def configure_optimizers(self) -> Any:
        """Make the model's optimizer, that of the estimators if they have parameters, and their schedulers."""
        model = [p for group in self.parameter_groups().values() for p in group]
        if not model:
            raise ValueError(f"{type(self).__name__} has no trainable parameters outside its estimators.")
        interval = self.lr_scheduler_interval
        configured = [schedules.build(self.optimizer, self.lr_scheduler, model, interval)]
        if surrogate := self.surrogate_parameters():
            configured.append(
                schedules.build(self.surrogate_optimizer, self.surrogate_lr_scheduler, surrogate, interval)
            )
        return configured

    def configure_callbacks(self) -> list[pl.Callback]:
        """Add no callback; this is the earliest hook, so unsupported options of the Trainer are refused here."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            refuse_unsupported(self.trainer, type(self).__name__)
        return []

    def on_fit_start(self) -> None:
        """Silence a warning that does not apply."""
        super().on_fit_start()
        # Lightning advises keeping weights from before the step, which nobody who resumes or tests from them wants.
        warnings.filterwarnings("ignore", "Using ModelCheckpoint with manual optimization", UserWarning)

    def on_train_epoch_end(self) -> None:
        """Step plateau schedulers, which need the metrics of the epoch."""
        self._confirm_last_step()
        # A run resumed at the end of an epoch passes here a second time, after Lightning has counted a batch too many
        # for its loggers.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.batches_trained()
        done = self._plateau_stepped_at == self.batches_trained()
        if self.lr_scheduler_interval == "epoch" and self._epoch_ends() and not done:
            self._plateau_stepped_at = self.batches_trained()
            schedules.step(self, plateau=True, resumed=self._resumed_metrics)

    def _both_optimizers(self) -> list[LightningOptimizer]:
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def _blocked_sync(self) -> AbstractContextManager[None]:
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def _mean_over_ranks(self, loss: Tensor) -> Tensor:
        mean = loss.detach().to(torch.promote_types(loss.dtype, torch.float32), copy=True)
        return self.trainer.strategy.reduce(mean, reduce_op="mean")

    def _step(self, optimizers: list[LightningOptimizer]) -> None:
        for optimizer in optimizers:
            self.configure_gradient_clipping(optimizer.optimizer, self.gradient_clip_val, self.gradient_clip_algorithm)
        model, *surrogate = optimizers
        for optimizer in surrogate:
            # Lightning counts a global_step for every step of its own wrapper: go below it.
            self.trainer.strategy.optimizer_step(optimizer.optimizer, closure=lambda: None)
        model.step()


def _gradients(optimizers: Sequence[LightningOptimizer]) -> list[Tensor]:
    parameters = (p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"])
    return [p.grad for p in parameters if p.grad is not None]
