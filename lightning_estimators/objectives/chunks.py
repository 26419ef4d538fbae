"""Evaluating a cost at many points: in chunks of bounded memory, under common noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from torch import Tensor

from lightning_estimators.noise import CommonNoise
from lightning_estimators.objectives.pace import Pace

__all__ = ["EvaluatedInChunks", "as_floating"]


class EvaluatedInChunks:
    """Mixin of costs that are evaluated at many points.

    Attributes:
        chunk_bytes: Bytes of changed points evaluated at once (what f allocates for them comes on top, in proportion);
            None stands for `cpu_chunk_bytes` on CPU, where chunks should stay in cache, and 256 MiB elsewhere. At least
            one point is evaluated at a time.
    """

    chunk_bytes: int | None = None
    cpu_chunk_bytes: ClassVar[int] = 2**20  # what f makes of it, several times as large, should stay in cache

    def _changes(
        self,
        f: Callable[[Tensor], Tensor],
        at: Tensor,
        points: Callable[[Tensor], Tensor],
        count: int,
        here: Tensor | None = None,
    ) -> Tensor:
        """Return f(points) - f(at), evaluated in chunks under common noise.

        Args:
            f: Maps `(n,) + at.shape` to `(n,) + lead`, and `at` to `lead`.
            at: The point that all others are compared with.
            points: Maps indices, shape `(n,)`, to the points of that index, shape `(n,) + at.shape`.
            count: How many points there are.
            here: f(at), if it is known and f draws no noise.

        Returns:
            Tensor of shape `(count,) + lead`.
        """
        noise = CommonNoise(at.device)
        here = as_floating(f(at) if here is None else here, at)
        out = here.new_empty(count, *here.shape)
        for start, stop in self._chunks(count, at.numel() * at.element_size(), at.device):
            with noise.replay(new_axis=here.ndim):
                there = f(points(torch.arange(start, stop, device=at.device)))
                torch.sub(as_floating(there, at), here, out=out[start:stop])
        return out

    def _chunks(self, count: int, bytes_each: int, device: torch.device) -> Iterator[tuple[int, int]]:
        """Yield ranges that make up `range(count)`, each as long as the byte budget allows."""
        step = max(1, self._budget(device) // max(1, bytes_each))
        pace = Pace(count)
        # The incomplete range comes first: a cost that draws noise for every point has then drawn most at the last one,
        # and what is drawn next is new.
        for stop in range((count - 1) % step + 1, count + 1, step):
            yield max(0, stop - step), stop
            pace.check(stop)

    def _budget(self, device: torch.device) -> int:
        if self.chunk_bytes is not None:
            return self.chunk_bytes
        return self.cpu_chunk_bytes if device.type == "cpu" else 2**28


def as_floating(cost: Tensor, like: Tensor) -> Tensor:
    """Return costs that are counts or truth values as numbers of the dtype of `like`, in which differences exist."""
    return cost if cost.is_floating_point() else cost.to(like.dtype)
