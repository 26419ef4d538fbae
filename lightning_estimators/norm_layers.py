"""Layers that keep running statistics, such as BatchNorm: what they see while an estimator works."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast
from weakref import WeakSet

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy

from lightning_estimators.private_api import version

__all__ = ["KeptNorms", "norms_kept"]


class KeptNorms:
    """Layers that are kept in a block of `norms_kept`, and the statistics that they had before.

    Attributes:
        is_outermost: Whether no other such block is around this one.
    """

    def __init__(self, *, is_outermost: bool = True) -> None:
        self.is_outermost = is_outermost
        self._before: dict[nn.Module, dict[str, Tensor]] = {}
        self._unsized: set[nn.Module] = set()
        self._ran: set[nn.Module] = set()

    def __bool__(self) -> bool:
        """Whether such layers ran in the block, which has ended."""
        return bool(self._ran)

    def keep(self, module: nn.Module, args: Any = ()) -> None:
        """Let a layer that may run change copies of its statistics.

        Args:
            module: Any module, which need not be such a layer.
            args: With what it is called.
        """
        if _running.get() is not self:  # it runs in another thread
            return
        # No hook is called for the parts of a module that torch has compiled.
        parts = module.modules() if type(module).__name__ == "OptimizedModule" else (module,)
        for part in parts:
            if part.training and vars(part).get("track_running_stats") and part not in self._before:
                self._before[part] = dict(part.named_buffers(recurse=False))
                if any(is_lazy(buffer) for buffer in self._before[part].values()):
                    self._unsized.add(part)
                else:
                    # Not changed and put back: autograd saves them, and refuses what was changed in place.
                    _set_buffers(part, _copies(self._before[part]))

    def remember(self) -> None:
        """Keep the statistics of these layers in every block from now on, where no hook may be called for them."""
        _hidden.update(self._ran)

    def put_back(self, around: KeptNorms | None) -> None:
        """Give every layer its own statistics again; those of a layer that got its size inside begin afresh.

        Args:
            around: The block around this one, in which the layers have then run too.
        """
        for module, before in self._before.items():
            if module in self._unsized or any(version(getattr(module, name)) for name in before):
                self._ran.add(module)
            if module in self._unsized:
                _set_buffers(module, _copies(before))
                cast(nn.BatchNorm1d, module).reset_running_stats()
            else:
                _set_buffers(module, before)
            if around is not None and module in self._ran:
                around.keep(module)
                around._ran.add(module)


def _set_buffers(module: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    for name, buffer in buffers.items():
        setattr(module, name, buffer)


def _copies(buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in buffers.items()}


_running: ContextVar[KeptNorms | None] = ContextVar("kept_norms", default=None)
_hidden: WeakSet[nn.Module] = WeakSet()
"""Layers in functions that torch has compiled, which call no hooks unless some were there when they were compiled."""


@contextmanager
def norms_kept() -> Iterator[KeptNorms]:
    """Let no layer change its running statistics inside, where f is evaluated at points that the model never sees.

    Such points are relaxed, or differ from a sample in one coordinate, or are all outcomes at once, or were evaluated
    before. The layers themselves work as ever: in training mode they normalise by what they are given.

    What is meant are layers in training mode whose attribute `track_running_stats` is true, as that of torch's
    `BatchNorm*`, `SyncBatchNorm` and `InstanceNorm*` and of classes derived from them.

    Example:
        >>> import torch
        >>> norm = nn.BatchNorm1d(1)
        >>> with norms_kept() as kept:
        ...     _ = norm(torch.ones(4, 1))
        >>> bool(kept), norm.running_mean, norm.num_batches_tracked
        (True, tensor([0.]), tensor(0))
    """
    around = _running.get()
    kept = KeptNorms(is_outermost=around is None)
    if "torch._dynamo" in sys.modules:
        warnings.filterwarnings("ignore", message="Using `torch.compile.module.` when there are global hooks")
    token = _running.set(kept)
    handle = register_module_forward_pre_hook(kept.keep)
    for module in _hidden:
        kept.keep(module)
    try:
        yield kept
    finally:
        handle.remove()
        _running.reset(token)
        kept.put_back(around)
