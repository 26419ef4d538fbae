"""With what the estimators inside a module are called: found by watching one evaluation of its loss."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.distributions import Distribution

from lightning_estimators.comparison.candidates import Place
from lightning_estimators.distributions import distribution_parameters, rebuild
from lightning_estimators.estimators import GradientEstimator

__all__ = ["Seen", "normalizes_batches", "watched_calls", "without_graph"]


@dataclass
class Seen:
    """What was seen.

    Attributes:
        places: By path, of the first call of each estimator.
        couples: Whether BatchNorm in training mode ran inside the cost of an estimator.
    """

    places: dict[str, Place] = field(default_factory=dict)
    couples: bool = False


@contextmanager
def watched_calls(module: nn.Module, estimators: Mapping[str, GradientEstimator]) -> Iterator[Seen]:
    """Watch the calls of estimators in the block.

    Args:
        module: That holds them.
        estimators: By path.
    """
    seen = Seen()
    inside: list[str] = []

    def enter(path: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        q: Distribution = args[0] if args else kwargs["q"]
        context = args[2] if len(args) > 2 else kwargs.get("context")
        if path not in seen.places:
            dims = len(q.batch_shape) - len(inside)  # each estimator around it has put its samples on the left
            context = None if context is None else context.detach()
            seen.places[path] = Place(estimators[path], without_graph(q), context, dims)
        inside.append(path)

    def leave(*_: Any) -> None:
        inside.pop()

    def normalize(*_: Any) -> None:
        seen.couples |= bool(inside)

    with ExitStack() as handles:
        for path, estimator in estimators.items():
            watch = functools.partial(enter, path)
            handles.callback(estimator.register_forward_pre_hook(watch, with_kwargs=True).remove)
            handles.callback(estimator.register_forward_hook(leave, always_call=True).remove)
        for part in module.modules():
            if normalizes_batches(part):
                handles.callback(part.register_forward_pre_hook(normalize).remove)
        yield seen


def normalizes_batches(module: nn.Module) -> bool:
    """Whether a module makes what it answers for one element of the batch depend on the others."""
    return isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm) and module.training


def without_graph(q: Distribution) -> Distribution:
    """Return q on detached parameters."""
    return rebuild(q, {name: p.detach() for name, p in distribution_parameters(q).items()})
