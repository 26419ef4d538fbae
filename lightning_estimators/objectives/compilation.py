"""Compiling functions of tensors with `torch.compile`: whether to, keeping what was compiled, and what if it fails."""

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

MIN_ELEMENTS = 2**22
"""From how many elements on a computation is worth the seconds that compiling takes."""

# The first three options keep the compiler from splitting the computation into several loops with intermediate results
# in memory, although these results are used more than once. The last one allows fused multiply-add instructions.
_OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {
    "realize_opcount_threshold": 10**6,
    "realize_reads_threshold": 10**6,
    "realize_acc_reads_threshold": 10**6,
    "cpp.enable_floating_point_contract_flag": "fast",
}

_choice: ContextVar[bool | None] = ContextVar("compile_choice", default=None)
_failed: set[str] = set()  # types of devices on which compiling failed once; it is not tried there again


@contextmanager
def compile_choice(choice: bool | None) -> Iterator[None]:  # noqa: FBT001
    """Let objectives compile always (True), never (False), or where it pays and there is a compiler (None)."""
    token = _choice.set(choice)
    try:
        yield
    finally:
        _choice.reset(token)


def is_compiled(elements: int, device: torch.device) -> bool:
    """Whether to use `compiled_or_none` for a computation of that many elements.

    The answer depends only on the size, the device, `compile_choice`, and on whether there is a compiler. It never
    depends on timings, so a resumed run decides as the first one did and yields the same numbers.
    """
    choice = _choice.get()
    if choice is False or device.type in _failed or torch.compiler.is_compiling():
        return False
    return choice is True or (elements >= MIN_ELEMENTS and compiler_at_hand(device.type))


@cache
def compiler_at_hand(device_type: str) -> bool:
    """Whether everything that `torch.compile` needs is installed.

    On the CPU that is a C++ compiler and Python's header files; on CUDA it is Triton and a C compiler.
    """
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
    """Compile a function, once, and return its value; warn and return None if compiling fails.

    Args:
        function: A function defined at the top level of a module, so that all callers share its compiled version.
        arguments: The tensors to call it with.
        sizes: For each argument, the axes whose sizes may differ from call to call without compiling again. Sizes of
            all other axes, and sizes of 1, become constants of the compiled program.
    """
    for argument, varying in zip(arguments, sizes, strict=True):
        mark_compiled_sizes(argument, varying)
    try:
        return _compiled(function)(*arguments)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers fail in many ways, and the run can go on without any of them
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
    """Keep the validation of distributions' arguments, which torch.compile turns off everywhere when first used."""
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
