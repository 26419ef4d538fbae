"""Time and memory of programs.

Programs that are compared take turns, so that whatever else the machine does slows down all of them. Memory is the
resident set of a process on Linux, which counts everything: weights, gradients, Adam's moments, what backward keeps,
temporaries, and what a library leaks. It can only be compared in a process that has done nothing else.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch

__all__ = ["Program", "Step", "Times", "alternate", "environment", "growth", "peak", "ratio", "timed"]

Key = TypeVar("Key", bound=Hashable)

Step = Callable[[], object]

Program = Callable[[int], tuple[float, float]]
"""Runs so many steps, and returns the seconds that all of them took: of wall time, and of processor time."""


@dataclass
class Times:
    """Seconds per step of one program, an entry for each round.

    Attributes:
        wall: Wall time.
        cpu: Processor time of all threads; a shared machine adds less to it than to wall time.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float | int]:
        """Return quartiles of processor time in milliseconds, and the median of wall time."""
        low, median, high = quartiles(self.cpu)
        return {
            "median_ms": 1e3 * median,
            "quartile1_ms": 1e3 * low,
            "quartile3_ms": 1e3 * high,
            "wall_median_ms": 1e3 * statistics.median(self.wall),
            "rounds": len(self.wall),
        }


def timed(step: Step) -> Program:
    """Return a program that repeats a step in this process."""

    def run(steps: int) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            step()
        return time.perf_counter() - wall, time.process_time() - cpu

    return run


def alternate(
    programs: Mapping[Key, Program], seconds: float, block: float = 0.02, min_rounds: int = 3
) -> dict[Key, Times]:
    """Run all programs in turn, round after round.

    Args:
        programs: By name. They may run in other processes, which wait while it is not their turn.
        seconds: Time for all programs together.
        block: Seconds of a turn, at least one step. An untimed step comes first: it brings the program's data back into
            the cache, while the threads of the program before come to rest. Steps that take five times as long as
            this are timed without it.
        min_rounds: Least number of rounds, however long they take.

    Returns:
        Times by name, of the same number of rounds.
    """
    counts, untimed = {}, {}
    for name, run in programs.items():
        run(2)  # the first steps allocate
        seconds_each = max(run(1)[0], 1e-9)
        counts[name], untimed[name] = max(1, round(block / seconds_each)), seconds_each < 5 * block
    times = {name: Times() for name in programs}
    begin = time.perf_counter()
    rounds = 0
    while rounds < min_rounds or time.perf_counter() - begin < seconds:
        for name, run in programs.items():
            if untimed[name]:
                run(1)
            wall, cpu = run(counts[name])
            times[name].wall.append(wall / counts[name])
            times[name].cpu.append(cpu / counts[name])
        rounds += 1
    return times


def ratio(ours: Times, other: Times) -> dict[str, float]:
    """Return quartiles of the ratios within rounds, which depend less on the load than the ratio of the medians.

    They are ratios of processor time; `wall_median` is that of wall time.
    """
    low, median, high = quartiles([a / b for a, b in zip(ours.cpu, other.cpu, strict=True)])
    wall = statistics.median(a / b for a, b in zip(ours.wall, other.wall, strict=True))
    return {"median": median, "quartile1": low, "quartile3": high, "wall_median": wall}


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def environment() -> dict[str, Any]:
    """Return versions, hardware, threads and load, on which every time depends."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": metadata.version("lightning"),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


MiB = 2**20


def peak(make: Callable[[], Step], steps: int = 2) -> dict[str, float]:
    """Return the peak memory of some steps, beyond what the process held before they were made.

    The steps are made, run and dropped once before, because what code, threads and compilers take is not theirs.

    Args:
        make: Makes the model and its step.
        steps: Number of steps; Adam allocates its moments in the first.

    Returns:
        `program_mib`, the peak less what was held before, and `process_mib`, the peak itself.

    Raises:
        RuntimeError: Not on Linux.
    """
    make()()
    _release()
    before = _resident("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
    except OSError as error:
        raise RuntimeError("expected to reset the peak by /proc/self/clear_refs, which is Linux's.") from error
    step = make()
    for _ in range(steps):
        step()
    mark = _resident("VmHWM")
    return {"program_mib": (mark - before) / MiB, "process_mib": mark / MiB}


def growth(make: Callable[[], Step], steps: int, first: int = 50) -> dict[str, float]:
    """Return by how much the memory of the process grows with every step, before and after a garbage collection.

    Args:
        make: Makes the model and its step.
        steps: Number of steps that count.
        first: Number of steps before them.

    Returns:
        `mib_per_step`, and `mib_per_step_collected` after reference cycles were collected.
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
