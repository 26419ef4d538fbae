"""Bounds on what one candidate may cost: seconds, and how its memory is found out."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["TooSlowError", "peak_bytes", "time_limit"]


_AGAIN = 0.5  # seconds


class TooSlowError(RuntimeError):
    """A candidate took longer than its share of the budget."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TooSlowError` in the block once it has taken so many seconds, where the system can interrupt it.

    It can on Unix in the main thread, between two operations of Python; elsewhere this does nothing. It is raised again
    every half second, since Python drops what is raised while it clears up objects.

    Args:
        seconds: More than 0.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: Any) -> None:
        raise TooSlowError(f"it took longer than {seconds:.2g} s, its share of the budget.")

    handler = signal.signal(signal.SIGALRM, ring)
    began = time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), _AGAIN)  # there may be a timer of others
    try:
        yield
    finally:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
        finally:  # it may ring in the line above
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-3), interval)


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
