"""Running parts of a module during training without leaving a trace in it."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

__all__ = ["Undo", "alone", "generators_kept", "isolated", "mute", "remember"]

_LEFT_ALONE = (
    nn.Parameter,  # the caller takes gradients and steps no optimizer
    torch.optim.Optimizer,
    pl.Trainer,
    pl.Callback,
    pl.LightningDataModule,
    Logger,
    Fabric,
    Dataset,
    DataLoader,
    type,
    ModuleType,
    FunctionType,
    BuiltinFunctionType,
    MethodType,
)
_LEFT_ALONE_PACKAGES = {"logging", "threading", "queue", "tensorboard", "concurrent", "multiprocessing"}

Undo = Callable[[], None]


@contextmanager
def isolated(module: pl.LightningModule) -> Iterator[None]:
    """Undo on exit what running parts of a module changes in it, so that training does not depend on being watched.

    Restored: the global random generators, buffers, train/eval modes, and the attributes of the module and of all
    modules in it, whatever they hold: counters, metrics of torchmetrics, lists, tensors, arrays, and objects of the
    user's with attributes of their own. Muted: `module.log` and `module.log_dict`. Parameters, their `.grad`,
    optimizers and the Trainer are the caller's to leave alone.

    Example:
        >>> import torch
        >>> class Model(pl.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.register_buffer("mean", torch.zeros(1))
        ...         self.calls = 0
        >>> model = Model()
        >>> with isolated(model):
        ...     model.eval()
        ...     model.mean += torch.rand(1)
        ...     model.calls += 1
        Model()
        >>> model.mean, model.training, model.calls
        (tensor([0.]), True, 0)
    """
    restore = remember(module)
    mute(module)
    try:
        # Asking for CUDA's generators on a machine that only uses the CPU would start CUDA.
        with generators_kept(include_cuda=module.device.type == "cuda"):
            yield
    finally:
        restore()


@contextmanager
def generators_kept(*, include_cuda: bool) -> Iterator[None]:
    """Put the generators of torch, NumPy and Python back on exit; also after an error, unlike `isolate_rng`.

    Args:
        include_cuda: Whether also those of CUDA.
    """
    raised: BaseException | None = None
    with isolate_rng(include_cuda=include_cuda):
        try:
            yield
        except BaseException as error:
            raised = error
    if raised is not None:
        raise raised


@contextmanager
def alone(group: dist.ProcessGroup | None) -> Iterator[None]:
    """Let collective operations in the block involve a group only, so that nobody waits for processes that do others.

    Args:
        group: In the place of all processes: made by `torch.distributed.new_group`, of this process only. None to do
            nothing, where there is one process anyway.
    """
    if group is None:
        yield
        return
    everybody = dist.GroupMember.WORLD
    dist.GroupMember.WORLD = group
    try:
        yield
    finally:
        dist.GroupMember.WORLD = everybody


def remember(*values: Any) -> Undo:
    """Return a function that puts values, and all that can be changed inside them, back to what they are now.

    It can be called any number of times, which is cheaper than remembering anew. Parameters are left alone.

    Args:
        values: Modules, or anything else.

    Example:
        >>> import torch
        >>> norm = nn.BatchNorm1d(1)
        >>> restore = remember(norm)
        >>> _ = norm(torch.tensor([[1.0], [3.0]]))
        >>> restore()
        >>> norm.running_mean
        tensor([0.])
    """
    seen: set[int] = set()
    undo = [_remember(value, seen) for value in values]

    def restore() -> None:
        with torch.no_grad():
            _all(undo)

    return restore


def mute(module: nn.Module) -> None:
    """Let `module.log` and `module.log_dict` do nothing: draws that are not training steps belong in no curve."""
    vars(module)["log"] = _mute  # log_dict calls log


def _remember(value: Any, seen: set[int]) -> Undo:
    """Return what puts a value, and all that can be changed inside it, back to what it is now.

    Args:
        value: Anything.
        seen: Identities of what has been remembered already.
    """
    if id(value) in seen or isinstance(value, _LEFT_ALONE):
        return _nothing
    seen.add(id(value))
    for kind, remember in _KINDS.items():
        if isinstance(value, kind):
            return remember(value, seen)
    attributes = getattr(value, "__dict__", None)
    if not isinstance(attributes, dict) or type(value).__module__.partition(".")[0] in _LEFT_ALONE_PACKAGES:
        return _nothing
    return _mapping(attributes, seen)


def _mapping(mapping: dict[Any, Any], seen: set[int]) -> Undo:
    items = dict(mapping)
    inside = [_remember(item, seen) for item in items.values()]

    def undo() -> None:
        if mapping.keys() != items.keys() or any(mapping[key] is not item for key, item in items.items()):
            mapping.clear()
            mapping.update(items)
        _all(inside)

    return undo


def _sequence(sequence: list[Any] | deque[Any], seen: set[int]) -> Undo:
    items = list(sequence)
    inside = [_remember(item, seen) for item in items]

    def undo() -> None:
        sequence.clear()
        sequence.extend(items)
        _all(inside)

    return undo


def _set(value: set[Any], seen: set[int]) -> Undo:
    items = list(value)

    def undo() -> None:
        value.clear()
        value.update(items)

    return undo


def _tuple(value: tuple[Any, ...], seen: set[int]) -> Undo:
    inside = [_remember(item, seen) for item in value]
    return lambda: _all(inside)


def _tensor(tensor: Tensor, seen: set[int]) -> Undo:
    saved = tensor.detach().clone()

    def undo() -> None:
        if not torch.equal(tensor.detach(), saved):  # what was not changed may be part of somebody's graph
            tensor.detach().copy_(saved)

    return undo


def _array(array: np.ndarray[Any, Any], seen: set[int]) -> Undo:
    saved = array.copy()
    return lambda: np.copyto(array, saved)


def _torch_generator(generator: torch.Generator, seen: set[int]) -> Undo:
    state = generator.get_state()

    def undo() -> None:
        generator.set_state(state)

    return undo


def _numpy_generator(generator: np.random.Generator, seen: set[int]) -> Undo:
    state = generator.bit_generator.state

    def undo() -> None:
        generator.bit_generator.state = state

    return undo


def _python_generator(generator: random.Random, seen: set[int]) -> Undo:
    state = generator.getstate()
    return lambda: generator.setstate(state)


_KINDS: dict[Any, Callable[[Any, set[int]], Undo]] = {
    Tensor: _tensor,
    dict: _mapping,
    (list, deque): _sequence,
    set: _set,
    tuple: _tuple,
    np.ndarray: _array,
    torch.Generator: _torch_generator,
    np.random.Generator: _numpy_generator,
    random.Random: _python_generator,
}


def _all(undo: list[Undo]) -> None:
    for restore in undo:
        restore()


def _nothing() -> None:
    """Do nothing."""


def _mute(*_: Any, **__: Any) -> None:
    """Stand in for `log`."""
