"""How much memory steps take, from what Linux says of a process.

The resident set counts everything: weights, gradients, Adam's moments, what backward keeps, temporaries, and what a
library leaks. It is only comparable in a process that has done nothing else.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import Step

__all__ = ["growth", "peak"]

MiB = 2**20


def peak(make: Callable[[], Step], steps: int = 2) -> dict[str, float]:
    """Return the high-water mark of a program over what the process held before the program was made.

    A first program of the same sizes is made, run and dropped before: what code, threads and compilers take is not the
    program's.

    Args:
        make: Makes the program.
        steps: How many are run; Adam allocates in the first.

    Returns:
        `program_mib`: the difference; `process_mib`: the mark itself.

    Raises:
        RuntimeError: Not on Linux.
    """
    make()()
    _release()
    before = _resident("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # sets the mark to what is resident now
    except OSError as error:
        raise RuntimeError(
            "expected to reset the high-water mark by /proc/self/clear_refs, which is Linux's."
        ) from error
    step = make()
    for _ in range(steps):
        step()
    mark = _resident("VmHWM")
    return {"program_mib": (mark - before) / MiB, "process_mib": mark / MiB}


def growth(make: Callable[[], Step], steps: int, first: int = 50) -> dict[str, float]:
    """Return by how much the process grows per step, as it is and after garbage collection at the end.

    Args:
        make: Makes the program.
        steps: How many are counted.
        first: How many are run before.

    Returns:
        `mib_per_step` and `mib_per_step_collected`, the latter with what reference cycles held given back.
    """
    step = make()
    for _ in range(first):
        step()
    _release()
    before = _resident("VmRSS")
    for _ in range(steps):
        step()
    grown = _resident("VmRSS") - before
    _release()
    return {
        "mib_per_step": grown / MiB / steps,
        "mib_per_step_collected": (_resident("VmRSS") - before) / MiB / steps,
        "steps": steps,
    }


def _release() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # the allocator keeps what is free


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"expected {field} in /proc/self/status, which is Linux's.")
