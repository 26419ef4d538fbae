"""One estimate of the gradient of a module's loss: by groups of parameters, and at the latents of its estimators."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_estimators.distributions import distribution_parameters
from lightning_estimators.estimators import GradientEstimator
from lightning_estimators.modules import EstimatorModule
from lightning_estimators.moments import flatten

__all__ = ["Gradients", "draw_gradients", "training_loss"]

Calls = dict[str, list[dict[str, Tensor]]]
"""Per path of an estimator, per call, the parameters of q that a gradient can flow into, by name."""


@dataclass(frozen=True)
class Gradients:
    """One estimate.

    Attributes:
        groups: By name of a group of parameters, one vector each, in at least float32.
        latents: By path of an estimator, in each parameter of the q it was given.
        own: Of each parameter that was asked for beside the groups; None where the loss does not depend on it.
    """

    groups: dict[str, Tensor]
    latents: dict[str, dict[str, Tensor]]
    own: list[Tensor | None]

    def named(self) -> dict[str, Tensor]:
        """Return one vector for each group, and `logits/<path>` for each estimator."""
        return self.groups | {f"logits/{path}": flatten(found.values()) for path, found in self.latents.items()}


def training_loss(module: pl.LightningModule, batch: Any, batch_idx: int, asker: str) -> Tensor:
    """Return the loss that a training step of any LightningModule minimises, under the noise of torch's generators.

    Args:
        module: Any LightningModule.
        batch: What its data loader yields.
        batch_idx: Index of the batch in its epoch.
        asker: What needs the loss, to be named in messages.

    Raises:
        TypeError: The training step returns none.
    """
    if isinstance(module, EstimatorModule):
        return module.loss(batch).mean()  # its training step would draw the noise of that step, every time the same
    takes_index = len(inspect.signature(module.training_step).parameters) > 1
    answer = module.training_step(batch, batch_idx) if takes_index else module.training_step(batch)
    loss = answer["loss"] if isinstance(answer, Mapping) else answer
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"{asker} needs a loss: {type(module).__name__}.training_step must return a tensor, or a mapping "
            f"with one under 'loss', got {type(answer).__name__}."
        )
    return loss


def draw_gradients(
    loss: Callable[[], Tensor],
    groups: Mapping[str, Sequence[Tensor]],
    estimators: Mapping[str, GradientEstimator],
    own: Sequence[nn.Parameter] = (),
    *,
    retain_graph: bool = False,
) -> Gradients:
    """Compute a loss once, and its gradient; nothing is accumulated in `.grad`.

    Args:
        loss: Returns the loss, a scalar.
        groups: Tensors that require grad, by the name of their group.
        estimators: Those that the loss calls, by path: what flows into the q they are given is a group too. Of several
            calls of one (an estimator nested in another), the first that the loss depends on counts.
        own: Further parameters whose gradients are wanted, such as those that the estimators learn.
        retain_graph: Whether the loss may share parts of its graph with what is computed later.
    """
    with _recorded(estimators) as calls:
        value = loss()
    parameters = [parameter for group in groups.values() for parameter in group]
    latent = [tensor for of_path in calls.values() for call in of_path for tensor in call.values()]
    # Never `backward`: it would accumulate in .grad and set off the hooks of DistributedDataParallel.
    wanted = [*parameters, *latent, *own]
    found = iter(torch.autograd.grad(value, wanted, allow_unused=True, retain_graph=retain_graph))
    gradients = {name: _joined([(next(found), p) for p in group]) for name, group in groups.items()}
    latents = {}
    for path, of_path in calls.items():
        answers = [{name: (next(found), tensor) for name, tensor in call.items()} for call in of_path]
        # An enclosing estimator may evaluate its cost at points that the loss does not depend on.
        reached = [call for call in answers if any(gradient is not None for gradient, _ in call.values())]
        if reached:
            latents[path] = {name: _or_zeros(gradient, tensor) for name, (gradient, tensor) in reached[0].items()}
    return Gradients(gradients, latents, list(found))


@contextmanager
def _recorded(estimators: Mapping[str, GradientEstimator]) -> Iterator[Calls]:
    calls: Calls = {path: [] for path in estimators}
    handles = []
    for path, estimator in estimators.items():

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path) -> None:
            q = args[0] if args else kwargs["q"]
            attached = {name: p for name, p in distribution_parameters(q).items() if p.requires_grad}
            if torch.is_grad_enabled() and attached:
                calls[path].append(attached)

        handles.append(estimator.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _joined(answers: Sequence[tuple[Tensor | None, Tensor]]) -> Tensor:
    return flatten([_or_zeros(gradient, tensor) for gradient, tensor in answers])


def _or_zeros(gradient: Tensor | None, tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if gradient is None else gradient
