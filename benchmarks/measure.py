"""Times of programs that take turns, so that whatever else the machine does falls on all of them."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import torch

__all__ = ["Times", "alternate", "environment", "ratio"]

Step = Callable[[], object]


@dataclass
class Times:
    """Seconds per step of one program, one entry per round.

    Attributes:
        wall: Elapsed.
        cpu: Used by this process on all its threads; rises less than `wall` when the machine is shared.
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


def alternate(
    programs: Mapping[str, Step], seconds: float, block: float = 0.02, min_rounds: int = 3
) -> dict[str, Times]:
    """Run all programs in turn, round after round.

    Args:
        programs: Steps by name.
        seconds: For how long, all together.
        block: Seconds a program runs before the next one's turn, at least one step. Where that is more than one, an
            untimed step comes first, which brings its data back into the cache.
        min_rounds: Rounds, however long they take.

    Returns:
        Times by name, of equally many rounds; those of one round were taken side by side.
    """
    counts = {}
    for name, step in programs.items():
        for _ in range(3):  # the first steps allocate
            begin = time.perf_counter()
            step()
            last = time.perf_counter() - begin
        counts[name] = max(1, round(block / max(last, 1e-9)))
    times = {name: Times() for name in programs}
    begin = time.perf_counter()
    rounds = 0
    while rounds < min_rounds or time.perf_counter() - begin < seconds:
        for name, step in programs.items():
            if counts[name] > 1:
                step()
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(counts[name]):
                step()
            times[name].wall.append((time.perf_counter() - wall) / counts[name])
            times[name].cpu.append((time.process_time() - cpu) / counts[name])
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
