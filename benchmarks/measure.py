"""Times of programs that take turns, so that whatever else the machine does falls on all of them."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, TypeVar

import torch

__all__ = ["Program", "Step", "Times", "alternate", "environment", "ratio", "timed"]

Key = TypeVar("Key", bound=Hashable)

Step = Callable[[], object]

Program = Callable[[int], tuple[float, float]]
"""Runs that many steps and returns the seconds all of them took: elapsed, and on processors."""


@dataclass
class Times:
    """Seconds per step of one program, one entry per round.

    Attributes:
        wall: Elapsed.
        cpu: Used by the process that runs it on all its threads; rises less than `wall` when the machine is shared.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float | int]:
        """Return quartiles in milliseconds."""
        low, median, high = quartiles(self.wall)
        return {
            "median_ms": 1e3 * median,
            "quartile1_ms": 1e3 * low,
            "quartile3_ms": 1e3 * high,
            "cpu_median_ms": 1e3 * statistics.median(self.cpu),
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
        programs: By name; they may run in other processes, which wait while it is not their turn.
        seconds: For how long, all together.
        block: Seconds a program runs before the next one's turn, at least one step. An untimed step comes first,
            which brings its data back into the cache while threads of the one before come to rest; not for steps
            of five times as long, to which neither matters.
        min_rounds: Rounds, however long they take.

    Returns:
        Times by name, of equally many rounds; those of one round were taken side by side.
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
    """Return quartiles of the ratios within rounds (which load moves less than the ratio of medians), of wall time."""
    low, median, high = quartiles([a / b for a, b in zip(ours.wall, other.wall, strict=True)])
    cpu = statistics.median(a / b for a, b in zip(ours.cpu, other.cpu, strict=True))
    return {"median": median, "quartile1": low, "quartile3": high, "cpu_median": cpu}


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def environment() -> dict[str, Any]:
    """Return versions, hardware, threads and load: what a time means nothing without."""
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
