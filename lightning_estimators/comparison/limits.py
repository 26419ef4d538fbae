"""Bounds on what one candidate may cost: seconds, and how its memory is found out."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["AGAIN", "TooSlowError", "peak_bytes", "time_limit"]


AGAIN = 5.0
"""Seconds, at least, after which an alarm that had no effect rings again."""


class TooSlowError(RuntimeError):
    """A candidate took longer than its share of the budget."""


def time_limit(seconds: float) -> AbstractContextManager[object]:
    """Raise `TooSlowError` in the block once it has taken so many seconds, where the system can interrupt it.

    It can on Unix in the main thread, between two operations of Python; elsewhere this does nothing. If the block goes
    on, since Python drops what is raised while it clears up objects, it is raised again after the same time, and not
    before `AGAIN`, by which the block has been left otherwise.

    Args:
        seconds: More than 0.
    """
    possible = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    return _Alarm(seconds) if possible else nullcontext()


class _Alarm:
    """Not a generator, which an alarm could interrupt on the way to what it does at the end."""

    def __init__(self, seconds: float) -> None:
        self.seconds = max(seconds, 1e-3)

    def __enter__(self) -> None:
        self.handler = signal.signal(signal.SIGALRM, self._ring)
        self.began = time.monotonic()
        again = max(self.seconds, AGAIN)
        self.others = signal.setitimer(signal.ITIMER_REAL, self.seconds, again)  # a timer that was running already

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.handler)
        left, interval = self.others
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - self.began), 1e-3), interval)

    def _ring(self, *_: object) -> None:
        raise TooSlowError(f"it took longer than {self.seconds:.2g} s, its share of the budget.")


def peak_bytes(run: Callable[[], object], device: torch.device) -> float:
    """Return the most bytes of tensors alive at once during a call, beyond those alive before; NaN if unknown.

    On CUDA the allocator knows. On the CPU torch's profiler adds up what operations allocate and free; what one
    operation needs inside itself is not seen.

    Example:
        >>> x = torch.zeros(1000)
        >>> round(peak_bytes(lambda: (x + 1) * 2, torch.device("cpu")), -3)
        8000.0
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return float(torch.cuda.max_memory_allocated(device) - before)
    if device.type != "cpu":
        run()
        return math.nan
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler's library writes to the terminal when it starts
    live = peak = 0
    try:
        with torch.autograd.profiler.profile(use_kineto=False, profile_memory=True) as profile:
            run()
    except RuntimeError as error:
        if "rofiler" in str(error):  # another profiler is running
            return math.nan
        raise
    for event in sorted(profile.function_events or [], key=lambda event: event.time_range.end):
        live += event.self_cpu_memory_usage
        peak = max(peak, live)
    return float(peak)
