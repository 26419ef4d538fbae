"""Evaluating a cost at many points, in chunks of bounded memory and with the same noise at every point.

A loop over many points may take very long. It then warns or gives up early, instead of seeming to hang.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from torch import Tensor

from lightning_estimators.noise import CommonNoise
from lightning_estimators.norm_layers import norms_kept

__all__ = ["EvaluatedInChunks", "Pace", "as_floating"]

_SLOW, _HOPELESS = 60.0, 600.0  # seconds for one call of an estimator
_MEASURED = 1.0  # seconds after which the speed of the loop is known well enough


class EvaluatedInChunks:
    """Mixin for costs that are evaluated at many points.

    Attributes:
        chunk_bytes: How many bytes of points are evaluated at once, at least one point; the memory that f itself
            allocates comes on top and grows in proportion. None for `cpu_chunk_bytes` on the CPU, and for 256 MiB on
            other devices.
        cpu_chunk_bytes: The default on the CPU, small enough that the intermediate results of f, which take several
            times as much memory as the points, stay in the processor's cache.
    """

    chunk_bytes: int | None = None
    cpu_chunk_bytes: ClassVar[int] = 2**20

    def _changes(
        self,
        f: Callable[[Tensor], Tensor],
        at: Tensor,
        points: Callable[[Tensor], Tensor],
        count: int,
        here: Tensor | None = None,
    ) -> Tensor:
        """Return f(points) - f(at), evaluated in chunks and with the same noise at every point.

        Args:
            f: Maps a tensor of shape `(n,) + at.shape` to one of shape `(n,) + lead`, and `at` to one of shape `lead`.
            at: The point with which all others are compared.
            points: Maps indices, shape `(n,)`, to the points with these indices, shape `(n,) + at.shape`.
            count: How many points there are.
            here: f(at), if it is known already and f is not random; otherwise None.

        Returns:
            Tensor of shape `(count,) + lead`.
        """
        noise = CommonNoise(at.device)
        if here is None:
            with norms_kept():  # evaluated before, with a gradient
                here = f(at)
        here = as_floating(here, at)
        out = here.new_empty(count, *here.shape)
        for start, stop in self._chunks(count, at.numel() * at.element_size(), at.device):
            with noise.replay(new_axis=here.ndim):
                there = f(points(torch.arange(start, stop, device=at.device)))
                torch.sub(as_floating(there, at), here, out=out[start:stop])
        return out

    def _chunks(self, count: int, bytes_each: int, device: torch.device) -> Iterator[tuple[int, int]]:
        """Split `range(count)` into ranges, each as long as the memory budget allows, and yield their ends."""
        step = max(1, self._budget(device) // max(1, bytes_each))
        pace = Pace(count)
        # The incomplete range comes first. A cost that draws noise for every point then draws most in the last range,
        # so the random generator ends in its most advanced state, and what is drawn afterwards is new noise.
        for stop in range((count - 1) % step + 1, count + 1, step):
            yield max(0, stop - step), stop
            pace.check(stop)

    def _budget(self, device: torch.device) -> int:
        if self.chunk_bytes is not None:
            return self.chunk_bytes
        return self.cpu_chunk_bytes if device.type == "cpu" else 2**28


def as_floating(cost: Tensor, like: Tensor) -> Tensor:
    """Return costs as floating-point numbers, so that they can be subtracted: integers and booleans are converted.

    Args:
        cost: The costs.
        like: A tensor of the dtype to which integers and booleans are converted.
    """
    return cost if cost.is_floating_point() else cost.to(like.dtype)


class Pace:
    """Estimates how long a loop will take: warns if that is more than a minute, and raises if it is more than ten.

    Args:
        count: How many points the loop evaluates.
    """

    def __init__(self, count: int) -> None:
        self.count, self.first = count, 0
        self.began: float | None = None
        self.told = False

    def check(self, done: int) -> None:
        """Estimate the remaining time once, from all chunks but the first one, which may include starting costs.

        Args:
            done: How many points have been evaluated.

        Raises:
            ValueError: The loop would take more than ten minutes.
        """
        now = time.monotonic()
        if self.began is None:
            self.began, self.first = now, done
        if self.told or done == self.first or now - self.began < _MEASURED:
            return
        self.told = True
        expected = (now - self.began) / (done - self.first) * (self.count - done)
        if expected < _SLOW:
            return
        message = (
            f"evaluating f with each coordinate changed in turn takes {self.count} points, and at the pace of the "
            f"first {done} about {expected / 60:.0f} minutes more for this one call. Give f as an objective that knows "
            "its structure (lightning_estimators.objectives), or use an estimator that evaluates f a few times, such "
            "as REINFORCE or REBAR."
        )
        if expected > _HOPELESS:
            raise ValueError(message)
        warnings.warn(message, stacklevel=2)
