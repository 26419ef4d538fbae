"""Random generators that are a function of counters, for as long as a block runs."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["counter_noise"]


@contextmanager
def counter_noise(device: torch.device, *counters: int) -> Iterator[None]:
    """Seed torch's global generators by counters; afterwards they are as they were before the block.

    No two sets of counters give the same seed (but by accident, once in 2^64), so that steps, streams of noise and
    processes that count differently draw independent noise, and the same step draws the same noise whatever was drawn
    before it.

    Args:
        device: Whose generator is seeded beside that of the CPU.
        *counters: Non-negative integers below 2^64, such as the run's seed, a stream, a step and the process.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> with counter_noise(torch.device("cpu"), 5, 0, 1):
        ...     first = torch.rand(2)
        >>> between = torch.rand(2)
        >>> with counter_noise(torch.device("cpu"), 5, 0, 1):
        ...     second = torch.rand(2)
        >>> bool((first == second).all())
        True
    """
    key = struct.pack(f"<{len(counters)}Q", *counters)
    # A hash, so that no two sets of counters meet as sums of them would.
    seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
    backend = None if device.type == "cpu" else torch.get_device_module(device)
    before = torch.get_rng_state(), None if backend is None else backend.get_rng_state()
    # Not torch.manual_seed: where CUDA is not in use it formats a stack trace at every call.
    torch.default_generator.manual_seed(seed)
    if backend is not None:
        backend.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        if backend is not None:
            backend.set_rng_state(before[1])
