"""Where a compiler is at hand, and functions of tensors that it fuses: one place decides, caches and warns."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution

from lightning_estimators.private_api import mark_compiled_sizes

__all__ = ["compile_choice", "compiled_or_none", "compiler_at_hand", "is_compiled"]

WORTHWHILE = 2**22
"""How many elements make a question worth the seconds that compiling takes."""

# The fused loop should stay one loop: intermediate results are used more than once, but never stored. With products
# contracted into fused multiply-adds, as the processor has them.
_OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {
    "realize_opcount_threshold": 10**6,
    "realize_reads_threshold": 10**6,
    "realize_acc_reads_threshold": 10**6,
    "cpp.enable_floating_point_contract_flag": "fast",
}

_choice: ContextVar[bool | None] = ContextVar("compile_choice", default=None)
_failed: set[str] = set()  # device types on which compiling failed: not tried again, and told once


@contextmanager
def compile_choice(choice: bool | None) -> Iterator[None]:  # noqa: FBT001
    """Have objectives compile always (True), never (False), or for large problems where a compiler is found (None)."""
    token = _choice.set(choice)
    try:
        yield
    finally:
        _choice.reset(token)


def is_compiled(elements: int, device: torch.device) -> bool:
    """Whether to ask `compiled_or_none` for a question of that many elements.

    Depends on sizes, device, the choice, and whether a compiler is there: the same in a run that is resumed.
    """
    choice = _choice.get()
    if choice is False or device.type in _failed or torch.compiler.is_compiling():
        return False
    return choice is True or (elements >= WORTHWHILE and compiler_at_hand(device.type))


@cache
def compiler_at_hand(device_type: str) -> bool:
    """Whether what `torch.compile` needs is installed: a C++ compiler and Python's headers, or Triton on CUDA."""
    if _is_switched_off():
        return False
    if device_type == "cuda":
        compiler = any(shutil.which(name) for name in (os.environ.get("CC"), "gcc", "clang", "cc") if name)
        return compiler and importlib.util.find_spec("triton") is not None
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    compiler = shutil.which(os.environ.get("CXX") or default) is not None
    headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    return device_type == "cpu" and compiler and headers


def compiled_or_none(
    function: Callable[..., Tensor], arguments: Sequence[Tensor], sizes: Sequence[Sequence[int]]
) -> Tensor | None:
    """Return the compiled function of the arguments, or None where compiling fails, which warns once.

    Args:
        function: Of the module's top level, so that all callers share what is compiled.
        arguments: Tensors.
        sizes: For each argument the axes whose sizes may differ from call to call; one compilation serves them all.
            Sizes of other axes, and sizes of 1, are compiled in.
    """
    for argument, varying in zip(arguments, sizes, strict=True):
        mark_compiled_sizes(argument, varying)
    try:
        return _compiled(function)(*arguments)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers fail in many ways, and none is worth ending a run that can go on without
        kind = arguments[0].device.type
        _failed.add(kind)
        needs = "Triton and a C compiler" if kind == "cuda" else "a C++ compiler (g++) and Python's headers"
        reason = str(error).strip().split("\n")[0][:300]
        warnings.warn(
            f"torch.compile failed, so exact discrete rules go on without it: same numbers, slower. It needs {needs}; "
            f"StochasticBackprop(compile=False) does without and says nothing. {type(error).__name__}: {reason}",
            stacklevel=2,
        )
        return None


def _is_switched_off() -> bool:
    return any(os.environ.get(name) == "1" for name in ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"))


@contextmanager
def _validation_of_distributions_kept() -> Iterator[None]:
    """Undo what torch.compile does when it is first used: it stops all distributions from checking their arguments."""
    validated = _distributions_validate()
    try:
        yield
    finally:
        if _distributions_validate() != validated:
            Distribution.set_default_validate_args(validated)


def _distributions_validate() -> bool:
    try:
        Bernoulli(logits=torch.tensor(torch.nan))
    except ValueError:
        return True
    return False


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    if _is_switched_off():
        raise RuntimeError("torch.compile is switched off by TORCH_COMPILE_DISABLE or TORCHDYNAMO_DISABLE.")
    with _validation_of_distributions_kept():
        try:
            return torch.compile(function, fullgraph=True, options=_OPTIONS)
        except RuntimeError:  # a release of torch with other options; without them the loop is only slower
            return torch.compile(function, fullgraph=True)
