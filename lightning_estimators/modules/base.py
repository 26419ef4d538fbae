"""The LightningModule under every model: a loss per example, and optimizers for model and estimators."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_estimators.checkpoint_io import make_durable
from lightning_estimators.estimators import GradientEstimator
from lightning_estimators.logged_steps import metric_is_read, step_is_logged
from lightning_estimators.model_parts import gradient_estimators, parameter_groups, surrogate_parameters
from lightning_estimators.modules.changed_options import ChangedOptions
from lightning_estimators.modules.exact_resume import ExactResume
from lightning_estimators.modules.finite_training import FiniteTraining, refuse_to_save_nonfinite
from lightning_estimators.modules.joined_callbacks import JoinedCallbacks
from lightning_estimators.modules.optimizers import chain_optimizers, check_maker, clip_gradients_of_parts
from lightning_estimators.modules.recorded import RecordedModule
from lightning_estimators.modules.refusals import check_costs, refuse_unsupported
from lightning_estimators.modules.scheduled import ScheduledSettings
from lightning_estimators.modules.seeded import TRAIN, EvaluationNoise, SeededModule
from lightning_estimators.modules.sharding import AverageWholeParameters
from lightning_estimators.modules.sigterm import SaveOnSigterm

__all__ = ["EstimatorModule"]


class EstimatorModule(RecordedModule, SeededModule, ABC):
    r"""Trains a model and the gradient estimators inside it, each with an optimizer of its own.

    A training step is one forward pass and one backward of the mean cost, which fills the gradients of the model and of
    what the estimators learn (baselines, temperatures, surrogate networks) at once. Lightning sees one
    `ChainedOptimizer` with the parts "model" and "surrogate" and does the rest, as for any LightningModule: clipping
    (each part by its own norm), accumulation, schedulers, precision, strategies, checkpoints.

    What this class adds to Lightning:

    - Noise by counters (`SeededModule`): processes draw independent noise, and a run that is resumed continues bit for
      bit if its data loader does (`callbacks.ExactResume`), but for options that were changed in between, which win
      (`callbacks.ChangedOptions`).
    - A step that is not finite stops training by name, before it reaches weights or checkpoints
      (`callbacks.FiniteTraining`).
    - Checkpoints from which the module can be built again (`RecordedModule`), and which a kill or a full disk cannot
      destroy (`checkpoint_io.DurableCheckpointIO`); one more when the process is asked to end
      (`callbacks.SaveOnSigterm`).

    Implementing one:

    1. Build networks and estimators in `__init__`, after `super().__init__(**training)`; call
       `estimator.prepare(q, context)` there with a distribution like those that will come.
    2. Implement `loss(batch)`: the costs to minimise, one per example.
    3. Avoid attributes named `layer` and `saved_models`, through which Lightning's `ModelCheckpoint` swaps weights.

    Logged:
        `train/loss`: mean cost of the batch over all processes, at every step at which a logger, a callback or a
            scheduler reads it, and at the end of the epoch; on the progress bar as often as it is refreshed, but not
            more often than ten times in `log_every_n_steps`.
        `estimator/<path>/<name>`: the figures of `GradientEstimator.diagnostics` of the estimator at `<path>` in the
            module, averaged over processes, every `Trainer(log_every_n_steps)` steps.

    Args:
        optimizer: Makes the optimizer of all parameters that are not an estimator's.
        surrogate_optimizer: Makes the optimizer of what the estimators learn; unused where they learn nothing. A
            parameter that an estimator shares with the model counts as the estimator's.
        lr_scheduler: Makes the scheduler of `optimizer`, or a dictionary in Lightning's form with the scheduler in it;
            none by default. For `ReduceLROnPlateau` take the class of `lightning.pytorch.cli`, whose `monitor` names
            a logged metric.
        surrogate_lr_scheduler: The same for `surrogate_optimizer`.
        lr_scheduler_interval: Whether schedulers step at the end of every training "epoch" or after every optimizer
            "step".

    Attributes:
        latest_costs: What `loss` returned last, without gradient; None before the first step.

    Raises:
        ValueError: An argument is out of range; or, when `fit` starts, the Trainer has an option that cannot work.
        TypeError: An optimizer or scheduler is not a callable that makes one.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Independent
        >>> from lightning_estimators.estimators import REBAR
        >>> class Coin(EstimatorModule):
        ...     def __init__(self, **training):
        ...         super().__init__(**training)
        ...         self.logits = torch.nn.Parameter(torch.zeros(3))
        ...         self.estimator = REBAR()
        ...     def loss(self, batch):
        ...         q = Independent(Bernoulli(logits=self.logits.expand(len(batch), 3)), 1)
        ...         return self.estimator(q, lambda b: (b - 0.499).square().sum(-1))
        >>> coin = Coin(optimizer=torch.optim.SGD)
        >>> coin.loss(torch.zeros(5, 1)).shape
        torch.Size([5])
        >>> list(coin.gradient_estimators()), list(coin.parameter_groups())
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
    ) -> None:
        super().__init__()
        check_maker("optimizer", optimizer, makes="an optimizer from parameters")
        check_maker("surrogate_optimizer", surrogate_optimizer, makes="an optimizer from parameters")
        check_maker("lr_scheduler", lr_scheduler, makes="a scheduler from an optimizer", optional=True)
        check_maker(
            "surrogate_lr_scheduler", surrogate_lr_scheduler, makes="a scheduler from an optimizer", optional=True
        )
        if lr_scheduler_interval not in ("epoch", "step"):
            raise ValueError(f'lr_scheduler_interval must be "epoch" or "step", got {lr_scheduler_interval!r}.')
        self.optimizer = optimizer
        self.surrogate_optimizer = surrogate_optimizer
        self.lr_scheduler = lr_scheduler
        self.surrogate_lr_scheduler = surrogate_lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        self.latest_costs: Tensor | None = None
        self._resume = ExactResume()
        self._callbacks = [
            EvaluationNoise(),
            AverageWholeParameters(),
            ScheduledSettings(),
            FiniteTraining(),
            self._resume,
            ChangedOptions(),
            SaveOnSigterm(),
        ]
        self._hooks_that_ran: set[str] = set()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Notice overridden hooks that forget `super()`, where that would lose what this class promises."""
        super().__init_subclass__(**kwargs)
        for name in ("configure_callbacks", "on_save_checkpoint", "on_load_checkpoint"):
            if name in vars(cls):
                setattr(cls, name, _calling_super(vars(cls)[name]))

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """Return the costs to minimise, one per example, shape (B,), with gradients attached.

        Args:
            batch: What the data loader yields.
        """

    def num_examples(self, batch: Any) -> int | None:
        """Return how many costs `loss` must return for this batch: the leading dimension of its first tensor.

        Override it where examples do not lie along that dimension; None skips the check.

        Args:
            batch: What the data loader yields.
        """
        while isinstance(batch, Mapping | Sequence) and not isinstance(batch, str) and len(batch):
            batch = next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0]
        return len(batch) if isinstance(batch, Tensor) and batch.ndim else None

    def gradient_estimators(self) -> dict[str, GradientEstimator]:
        """Return the estimators by their path in the module, outermost first; none from inside another estimator."""
        return gradient_estimators(self)

    def surrogate_parameters(self) -> list[nn.Parameter]:
        """Return what the estimators learn: their trainable parameters, each once."""
        return surrogate_parameters(self)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the model's trainable parameters by top-level attribute, those of estimators excluded."""
        return parameter_groups(self)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the mean cost, and log it where somebody reads it.

        Args:
            batch: What the data loader yields.
            batch_idx: Index of the batch in its epoch.

        Raises:
            ValueError: `loss` returned no costs of shape (B,).
        """
        with self.noise(TRAIN):
            costs = self.loss(batch)
        check_costs(f"{type(self).__name__}.loss(batch)", costs, self.num_examples(batch))
        self.latest_costs = costs.detach()
        loss = costs.mean()
        is_logged = step_is_logged(self.trainer, batch_idx)
        if is_logged or metric_is_read(self.trainer, "train/loss", batch_idx):
            shown = loss.detach().to(torch.promote_types(loss.dtype, torch.float32), copy=True)
            self.log("train/loss", shown, prog_bar=True, on_step=True, on_epoch=False, sync_dist=True)
        if is_logged:
            for path, estimator in self.gradient_estimators().items():
                for name, figure in estimator.diagnostics().items():
                    self.log(f"estimator/{path}/{name}", figure, on_step=True, on_epoch=False, sync_dist=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Make the optimizers of model and estimators, chained to one, and their schedulers.

        Returns:
            `([chained], schedulers)`, see `modules.optimizers.chain_optimizers`.
        """
        return chain_optimizers(
            self,
            optimizer=self.optimizer,
            surrogate_optimizer=self.surrogate_optimizer,
            lr_scheduler=self.lr_scheduler,
            surrogate_lr_scheduler=self.surrogate_lr_scheduler,
            lr_scheduler_interval=self.lr_scheduler_interval,
        )

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Bound the gradients of model and estimators, each by itself: one of them never shrinks the other's step."""
        clip_gradients_of_parts(self, optimizer, gradient_clip_val, gradient_clip_algorithm)

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        """Step a scheduler, unless it has done this step before the checkpoint was saved that the run continues."""
        if not self._resume.repeats(scheduler):
            super().lr_scheduler_step(scheduler, metric)

    def configure_callbacks(self) -> list[pl.Callback]:
        """Add what this class promises; this is the earliest hook, so unsupported options are refused here."""
        self._hooks_that_ran.add("configure_callbacks")
        refuse_unsupported(self.trainer, self)
        make_durable(self.trainer)
        given = self.trainer.callbacks  # type: ignore[attr-defined]
        # One that the user has given settings of its own takes the place of ours.
        return [JoinedCallbacks([c for c in self._callbacks if not any(isinstance(g, type(c)) for g in given)])]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the seed of the noise; refuse to save weights that are not finite.

        Args:
            checkpoint: What is about to be saved.
        """
        self._hooks_that_ran.add("on_save_checkpoint")
        super().on_save_checkpoint(checkpoint)
        checkpoint["noise_seed"] = self.noise_seed()
        if "callbacks" not in checkpoint:  # Lightning asks no callback about weights alone
            refuse_to_save_nonfinite(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the seed of the run that saved the checkpoint.

        Args:
            checkpoint: What was saved.
        """
        self._hooks_that_ran.add("on_load_checkpoint")
        super().on_load_checkpoint(checkpoint)
        self.load_seed(checkpoint.get("noise_seed"))


def _calling_super(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an overridden hook so that it raises if that of `EstimatorModule` did not run inside it."""

    @functools.wraps(hook)
    def checked(self: EstimatorModule, *args: Any, **kwargs: Any) -> Any:
        self._hooks_that_ran.discard(hook.__name__)
        answer = hook(self, *args, **kwargs)
        if hook.__name__ not in self._hooks_that_ran:
            raise TypeError(
                f"{type(self).__name__}.{hook.__name__} must call super().{hook.__name__}(...)"
                + (" and return its callbacks with its own." if hook.__name__ == "configure_callbacks" else ".")
                + " Without it, what EstimatorModule promises of checkpoints and noise would be lost."
            )
        return answer

    return checked
