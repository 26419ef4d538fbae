"""Statistics of past calls that an estimator or a baseline keeps: what may enter them, and which a call may use."""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_estimators.noise import current_scope, is_replaying
from lightning_estimators.private_api import backward_number, inside_data_parallel_forward, is_saving_hooked

__all__ = ["RunningStatistics"]

_REMEMBERED = 1024  # first passes under activation checkpointing, of which the backward pass repeats the last ones
_REMEMBERED_BYTES = 2**28


class RunningStatistics(nn.Module):
    r"""Buffers that sum up past calls. What a call uses of them never contains the call itself:

    - a call uses the statistics from before it and takes its own figures in afterwards, in training mode only;
    - where an enclosing control variate evaluates its cost again under the same noise, the statistics from before the
      first evaluation serve again;
    - where activation checkpointing (`torch.utils.checkpoint`) repeats a forward pass during backward, the statistics
      of the first pass serve again, found by the state of the random number generator.

    Figures that are not finite are left out, so that one bad cost does not stay for ever; `diagnostics` counts the
    calls left out as `skipped` (nothing is read back from the device, so nothing is printed).

    Implementing one: use what `past` returns; afterwards, where `takes_in` says so, sum the figures by
    `sum_over_processes` and hand the new statistics to `replace`.

    Args:
        statistics: The statistics by name, as they are before the first call; they become persistent buffers.
        average_over_processes: Whether the figures of all processes enter: None for only where all processes are known
            to take part, inside the forward pass of `DistributedDataParallel`; True for always, which waits for the
            others; False for never.
    """  # noqa: D415

    taken: Tensor

    def __init__(self, statistics: Mapping[str, Tensor], average_over_processes: bool | None) -> None:  # noqa: FBT001
        super().__init__()
        self.average_over_processes = average_over_processes
        self._names = tuple(statistics)
        for name, start in statistics.items():
            self.register_buffer(name, start)
        self.register_buffer("taken", torch.zeros(()), persistent=False)
        self._calls = self._scope = 0
        self._previous: list[Tensor] = []
        self._before_backward: tuple[int, list[Tensor]] = (-1, [])
        self._first_passes: OrderedDict[bytes, list[Tensor]] = OrderedDict()

    def past(self, device: torch.device) -> Sequence[Tensor]:
        """Return the statistics that a call may use, in the order of their names.

        Args:
            device: Where the call draws its noise.
        """
        now = self._statistics()
        if not self.training:
            return now
        if is_replaying() and self._previous:
            return self._previous
        if backward_number() < 0:
            if is_saving_hooked():
                self._remember(_generator_state(device), now)
            before: Sequence[Tensor] = now
        else:
            before = self._repeated(device, now)
        if (scope := current_scope()) != self._scope:  # calls that may be replayed together share what was before all
            self._previous = [statistic.clone() for statistic in before]
            self._scope = scope
        return before

    def takes_in(self, device: torch.device, *, repeated: bool) -> bool:
        """Whether the figures of a call are to enter the statistics: in training, and once.

        Args:
            device: Where the call draws its noise.
            repeated: Whether `past` found the call to be repeated by activation checkpointing (`is_repeated`).
        """
        return self.training and not is_replaying() and not repeated

    def is_repeated(self, device: torch.device) -> bool:
        """Whether activation checkpointing repeats a call, asked where the generator is as it was at `past`."""
        return backward_number() >= 0 and _generator_state(device) in self._first_passes

    def sum_over_processes(self, figures: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the sums of figures over all processes that take part.

        Raises:
            RuntimeError: Another process did not call this in time.
        """
        if not self.sums_over_processes():
            return figures
        joined = torch.cat([figure.reshape(-1) for figure in figures])
        try:
            dist.all_reduce(joined)
        except RuntimeError as error:
            raise RuntimeError(
                f"{type(self).__name__} averages costs over all {dist.get_world_size()} processes, but not all of them "
                "called it in this step. Call the estimator in every process, or build the baseline with "
                f"average_over_processes=False. ({error})"
            ) from error
        parts = torch.split(joined, [figure.numel() for figure in figures])
        return [part.reshape(figure.shape) for part, figure in zip(parts, figures, strict=True)]

    def sums_over_processes(self) -> bool:
        """Whether the figures of all processes enter in this call."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return False
        return inside_data_parallel_forward() if self.average_over_processes is None else self.average_over_processes

    def replace(self, new: Sequence[Tensor]) -> Tensor:
        """Put new statistics in the place of the old ones, all or, if one is not finite, none.

        Args:
            new: In the order of the names.

        Returns:
            Whether they were taken, a 0-d tensor of truth.
        """
        self._calls += 1
        # A sum is finite only if all it adds up is.
        finite = functools.reduce(torch.add, [s.sum() if s.ndim else s for s in new]).isfinite()
        for old, statistic in zip(self._statistics(), new, strict=True):
            torch.where(finite, statistic.to(old.dtype), old, out=old)  # in place: others may hold on to the buffers
        self.taken.add_(finite)
        return finite

    def diagnostics(self) -> dict[str, Tensor]:
        """Return `skipped`, the calls of this process that were left out because a figure was not finite."""
        return {"skipped": self._calls - self.taken}

    def _statistics(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._names]

    def _remember(self, state: bytes, statistics: Sequence[Tensor]) -> None:
        self._first_passes[state] = [statistic.clone() for statistic in statistics]
        bytes_each = max(1, sum(statistic.numel() * statistic.element_size() for statistic in statistics))
        while len(self._first_passes) > max(1, min(_REMEMBERED, _REMEMBERED_BYTES // bytes_each)):
            self._first_passes.popitem(last=False)

    def _repeated(self, device: torch.device, now: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the statistics of the pass that is repeated; of before this backward if none had gradients.

        Reentrant checkpointing runs the first pass without gradients, so that the repeated ones are the only ones.
        """
        known = self._first_passes.get(_generator_state(device))
        if known is not None:
            return known
        if self._before_backward[0] != backward_number():
            self._before_backward = (backward_number(), [statistic.clone() for statistic in now])
        return self._before_backward[1]


def _generator_state(device: torch.device) -> bytes:
    """Identify the place in the stream of random numbers at which a call stands: the same only in a repeated pass."""
    state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    return hashlib.blake2b(state.numpy().tobytes(), digest_size=16).digest()
