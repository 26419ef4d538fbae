"""Two optimizers for model and estimators, in the form in which Lightning's automatic optimization takes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lightning_estimators.chained_optimizer import ChainedOptimizer
from lightning_estimators.model_parts import parameter_groups, surrogate_parameters
from lightning_estimators.modules.fused_adam import fused_where_possible

__all__ = ["PartScheduler", "chain_optimizers", "check_maker", "clip_gradients_of_parts"]

_Configured = tuple[list[ChainedOptimizer], list[dict[str, Any]]]


def chain_optimizers(
    module: pl.LightningModule,
    *,
    optimizer: OptimizerCallable = torch.optim.Adam,
    surrogate_optimizer: OptimizerCallable = torch.optim.Adam,
    lr_scheduler: LRSchedulerCallable | None = None,
    surrogate_lr_scheduler: LRSchedulerCallable | None = None,
    lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
    others: Mapping[str, tuple[OptimizerCallable, Iterable[nn.Parameter]]] | None = None,
) -> _Configured:
    """Return what `configure_optimizers` of any LightningModule that holds estimators may return, in one line.

    Lightning sees one `ChainedOptimizer` with the parts "model" (all trainable parameters that are not an estimator's)
    and, if the estimators learn something, "surrogate" (what they learn). Automatic optimization is then enough, since
    one backward fills the gradients of both.

    Adam and AdamW take all their parameters in one fused kernel, unless their settings say how they should
    (`fused_where_possible`).

    With `Trainer(gradient_clip_val=...)` Lightning bounds the norm of all gradients together. To bound each part by its
    own norm, as `EstimatorModule` does, override `configure_gradient_clipping` and call `clip_gradients_of_parts`.

    Args:
        module: Holds the parameters and the estimators.
        optimizer: Makes the optimizer of the model.
        surrogate_optimizer: Makes the optimizer of what the estimators learn.
        lr_scheduler: Makes the scheduler of `optimizer`, or a dictionary in Lightning's form with the scheduler in it
            (`{"scheduler": ..., "interval": ..., "frequency": ..., "monitor": ..., "strict": ...}`).
        surrogate_lr_scheduler: The same for `surrogate_optimizer`.
        lr_scheduler_interval: Whether schedulers that do not say so themselves step every "epoch" or every "step".
        others: Further parts by name: what makes the optimizer of a part, and its parameters, which then do not belong
            to "model" (a critic beside a policy).

    Returns:
        A list with the chained optimizer, and a list of scheduler dictionaries to which more may be appended.

    Raises:
        ValueError: The module has no trainable parameter outside its estimators, or an optimizer or scheduler cannot
            work.
        TypeError: What should make an optimizer or a scheduler made something else.

    Example:
        >>> import torch
        >>> from lightning_estimators.estimators import REBAR
        >>> class Plain(pl.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.encoder, self.estimator = torch.nn.Linear(4, 3), REBAR()
        ...     def configure_optimizers(self):
        ...         return chain_optimizers(self, surrogate_optimizer=torch.optim.SGD)
        >>> (optimizer,), schedulers = Plain().configure_optimizers()
        >>> {name: type(part).__name__ for name, part in optimizer.parts.items()}
        {'model': 'Adam', 'surrogate': 'SGD'}
    """
    apart = {name: (maker, list(parameters)) for name, (maker, parameters) in (others or {}).items()}
    elsewhere = {parameter for _, parameters in apart.values() for parameter in parameters}
    model = [p for group in parameter_groups(module).values() for p in group if p not in elsewhere]
    if not model:
        raise ValueError(f"{type(module).__name__} has no trainable parameters outside its estimators.")
    parts = {"model": _made(Optimizer, "optimizer", optimizer, model)}
    if surrogate := surrogate_parameters(module):
        parts["surrogate"] = _made(Optimizer, "surrogate_optimizer", surrogate_optimizer, surrogate)
    parts |= {name: _made(Optimizer, f"{name}_optimizer", maker, given) for name, (maker, given) in apart.items()}
    for part in parts.values():
        fused_where_possible(part)
    chained = ChainedOptimizer(**parts)
    makers = {"model": ("lr_scheduler", lr_scheduler), "surrogate": ("surrogate_lr_scheduler", surrogate_lr_scheduler)}
    schedulers = [
        _scheduler_dictionary(chained, part, name, maker, lr_scheduler_interval)
        for part, (name, maker) in makers.items()
        if maker is not None and part in parts
    ]
    return [chained], schedulers


def clip_gradients_of_parts(
    module: pl.LightningModule, optimizer: Optimizer, clip_val: float | None, algorithm: str | None
) -> None:
    """Bound the gradients of each part of a `ChainedOptimizer` by itself; those of any other optimizer as a whole.

    Args:
        module: Whose Trainer clips.
        optimizer: As `configure_gradient_clipping` gets it.
        clip_val: Bound, None for none.
        algorithm: Bound the "norm" of all gradients of a part or the "value" of each entry.
    """
    if clip_val is None and module.trainer.gradient_clip_val is None:
        return  # at once: Lightning finds out only after some thirty calls, at every step
    parts = optimizer.parts.values() if isinstance(optimizer, ChainedOptimizer) else [optimizer]
    for part in parts:
        module.clip_gradients(part, gradient_clip_val=clip_val, gradient_clip_algorithm=algorithm)


class PartScheduler(LRScheduler):
    """A scheduler of one part of a `ChainedOptimizer` that names the whole as its optimizer.

    Lightning refuses schedulers of optimizers that it was not given, and it was given the whole. Everything but
    `optimizer` is the scheduler's own.

    Args:
        scheduler: A scheduler of one of the parts.
        optimizer: The whole.
    """

    def __init__(self, scheduler: LRScheduler, optimizer: ChainedOptimizer) -> None:
        self.scheduler = scheduler
        self.optimizer = optimizer

    def __getattr__(self, name: str) -> Any:
        if name == "scheduler":  # before the constructor has run, as in copying
            raise AttributeError(name)
        return getattr(self.scheduler, name)

    def step(self, *args: Any) -> None:
        """Step the scheduler, one that watches a metric by that metric."""
        self.scheduler.step(*args)

    def get_last_lr(self) -> list[Any]:
        """Return the learning rates of the part's groups."""
        return self.scheduler.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scheduler."""
        return self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of the scheduler."""
        self.scheduler.load_state_dict(state_dict)


def check_maker(name: str, maker: Any, *, makes: str, optional: bool = False) -> None:
    """Raise unless an argument can be called to make something.

    Args:
        name: Of the argument.
        maker: What was given.
        makes: Words for what it makes, and from what.
        optional: Whether None is fine.

    Raises:
        TypeError: It cannot be called.
    """
    if not callable(maker) and not (optional and maker is None):
        raise TypeError(f"{name} must make {makes}: a class, or functools.partial(class, ...); got {maker!r}.")


def _scheduler_dictionary(
    chained: ChainedOptimizer, part: str, name: str, maker: Callable[[Any], Any], interval: str
) -> dict[str, Any]:
    made = maker(chained.parts[part])
    given = dict(made) if isinstance(made, Mapping) else {"scheduler": made}
    scheduler: Any = given.get("scheduler")
    if not callable(getattr(scheduler, "step", None)):
        raise TypeError(
            f"{name} must make a scheduler, such as those of torch.optim.lr_scheduler, or a dictionary with one under "
            f"'scheduler'; {maker!r} made {made!r}."
        )
    if isinstance(scheduler, ReduceLROnPlateau):
        given.setdefault("reduce_on_plateau", True)
        given.setdefault("monitor", getattr(scheduler, "monitor", None))
        if given["monitor"] is None:
            raise ValueError(
                f"{name} makes a ReduceLROnPlateau that does not say which metric it watches: use "
                "functools.partial(lightning.pytorch.cli.ReduceLROnPlateau, monitor=...), with a logged metric, or "
                "return {'scheduler': ..., 'monitor': ...}."
            )
    # LearningRateMonitor then logs lr/model and lr/surrogate.
    return {"interval": interval, "name": "lr"} | given | {"scheduler": PartScheduler(scheduler, chained)}


def _made(kind: type[Any], name: str, maker: Callable[[Any], Any], given: Any) -> Any:
    made = maker(given)
    if not isinstance(made, kind):
        raise TypeError(f"{name} must make a torch.optim.Optimizer from parameters; {maker!r} made {made!r}.")
    return made
