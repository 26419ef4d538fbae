"""Looking at a module during training without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.seed import isolate_rng

__all__ = ["isolated"]


@contextmanager
def isolated(module: pl.LightningModule) -> Iterator[None]:
    """Undo on exit what running parts of a module changes in it, so that training does not depend on being watched.

    Restored: the global random generators, every buffer (running statistics), every train/eval mode. Muted:
    `module.log` and `module.log_dict`. Parameters, their `.grad` and optimizers are the caller's to leave alone.

    Example:
        >>> import torch
        >>> class Model(pl.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.register_buffer("mean", torch.zeros(1))
        >>> model = Model()
        >>> with isolated(model):
        ...     model.eval()
        ...     model.mean += torch.rand(1)
        Model()
        >>> model.mean, model.training
        (tensor([0.]), True)
    """
    buffers = [
        (owner, name, buffer, None if buffer is None else buffer.clone())
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
    ]
    modes = [(part, part.training) for part in module.modules()]
    vars(module)["log"] = _mute  # log_dict calls log
    try:
        # Asking for CUDA's generators on a machine that only uses the CPU would start CUDA.
        with isolate_rng(include_cuda=module.device.type == "cuda"):
            yield
    finally:
        del vars(module)["log"]
        with torch.no_grad():
            for owner, name, buffer, saved in buffers:
                if buffer is not None and saved is not None:
                    buffer.copy_(saved)  # changed in place ...
                if owner._buffers[name] is not buffer:
                    setattr(owner, name, buffer)  # ... or replaced
        for part, mode in modes:
            part.training = mode


def _mute(*_: Any, **__: Any) -> None:
    """Stand in for `log`: draws that are not training steps belong in no curve."""
