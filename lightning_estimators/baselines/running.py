"""Moving averages of past costs: what a baseline may subtract, and when, without knowing the cost itself."""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_estimators.baselines.base import Baseline
from lightning_estimators.noise import current_scope, is_replaying
from lightning_estimators.private_api import backward_number, inside_data_parallel_forward, is_saving_hooked

__all__ = ["RunningBaseline"]

_REMEMBERED = 1024  # first passes under activation checkpointing, of which the backward pass repeats the last ones


class RunningBaseline(Baseline):
    r"""A baseline that keeps exponential moving averages, $c \leftarrow \rho c + (1 - \rho) \bar f$.

    The averages start at the first figures seen. What is subtracted from a cost never contains it:

    - a call uses the averages from before it and takes its own figures in afterwards, in training mode only;
    - where an enclosing control variate evaluates its cost again under the same noise, the averages from before the
      first evaluation serve again;
    - where activation checkpointing (`torch.utils.checkpoint`) repeats a forward pass during backward, the averages of
      the first pass serve again, found by the state of the random number generator.

    Figures that are not finite, and those of an empty batch, are left out, so that one bad cost does not stay for ever;
    `diagnostics` counts the calls left out as `skipped` (nothing is read back from the device, so nothing is printed).
    All statistics are buffers.

    Implementing one: subtract entries of `past(cost)`, then call `take_in` with the figures.

    Args:
        decay: ρ, in [0, 1).
        statistics: Names of the averages, which become buffers.
        average_over_processes: Whether the figures of all processes enter; see the subclasses.

    Raises:
        ValueError: decay is outside [0, 1).
    """

    started: Tensor
    previous: Tensor
    taken: Tensor

    def __init__(self, decay: float, statistics: Sequence[str], average_over_processes: bool | None) -> None:  # noqa: FBT001
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"{type(self).__name__} needs a decay in [0, 1), got {decay!r}.")
        self.decay, self.average_over_processes = decay, average_over_processes
        self._names = tuple(statistics)
        for name in (*statistics, "started"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("previous", torch.zeros(len(self._names)), persistent=False)
        self.register_buffer("taken", torch.zeros(()), persistent=False)
        self._calls = self._scope = 0
        self._before_backward: tuple[int, list[Tensor]] = (-1, [])
        self._first_passes: OrderedDict[bytes, list[Tensor]] = OrderedDict()

    def past(self, cost: Tensor) -> Sequence[Tensor]:
        """Return what may be subtracted from a cost: the averages, in the order of their names.

        Args:
            cost: As `forward` got it.
        """
        now = self._averages()
        if not self.training:
            return now
        if is_replaying():
            return self.previous.unbind()
        if backward_number() < 0:
            if is_saving_hooked():
                self._remember(_generator_state(cost.device), now)
            before: Sequence[Tensor] = now
        else:
            before = self._repeated(cost, now)
        if (scope := current_scope()) != self._scope:  # calls that may be replayed together share what was before all
            torch.stack(list(before), out=self.previous)
            self._scope = scope
        return before

    def take_in(self, cost: Tensor, *figures: Tensor) -> None:
        """Let the figures of a call enter the averages, one tensor for each; call it after `past`, in any mode.

        Args:
            cost: As `forward` got it.
            figures: Of the shape of cost; their means enter.
        """
        if not self.training or is_replaying() or self._is_repeated(cost):
            return
        self._calls += 1
        summed = self._sums_over_processes()
        if not summed and not cost.numel():
            return
        averages, keep = self._averages(), self.decay * self.started
        # `started` is 0 at first, so that the averages jump to the first figures; no branch, no host sync.
        current = self._means(figures, summed=summed)
        new = [torch.lerp(now.to(old.dtype), old, keep) for now, old in zip(current, averages, strict=True)]
        finite = functools.reduce(torch.mul, [(figure - figure) == 0 for figure in new])
        for average, figure in zip(averages, new, strict=True):
            torch.where(finite, figure, average, out=average)
        self.started.masked_fill_(finite, 1.0)
        self.taken.add_(finite)

    def diagnostics(self) -> dict[str, Tensor]:
        """Return `skipped`, the calls of this process that were left out because a figure was not finite."""
        return {**super().diagnostics(), "skipped": self._calls - self.taken}

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"decay={self.decay}, average_over_processes={self.average_over_processes}"

    def _averages(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._names]

    def _remember(self, state: bytes, averages: Sequence[Tensor]) -> None:
        self._first_passes[state] = [average.clone() for average in averages]
        while len(self._first_passes) > _REMEMBERED:
            self._first_passes.popitem(last=False)

    def _repeated(self, cost: Tensor, now: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the averages of the pass that is repeated; of before this backward if there was none with gradients.

        Reentrant checkpointing runs the first pass without gradients, so that the repeated ones are the only ones.
        """
        known = self._first_passes.get(_generator_state(cost.device))
        if known is not None:
            return known
        if self._before_backward[0] != backward_number():
            self._before_backward = (backward_number(), [average.clone() for average in now])
        return self._before_backward[1]

    def _is_repeated(self, cost: Tensor) -> bool:
        return backward_number() >= 0 and _generator_state(cost.device) in self._first_passes

    def _sums_over_processes(self) -> bool:
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return False
        return inside_data_parallel_forward() if self.average_over_processes is None else self.average_over_processes

    def _means(self, figures: Sequence[Tensor], *, summed: bool) -> Sequence[Tensor]:
        if not summed:
            return [figure.mean() for figure in figures]
        count = figures[0].new_tensor(float(figures[0].numel()))
        totals = torch.stack([*(figure.sum() for figure in figures), count])
        try:
            dist.all_reduce(totals)
        except RuntimeError as error:
            raise RuntimeError(
                f"{type(self).__name__} averages costs over all {dist.get_world_size()} processes, but not all of them "
                "called it in this step. Call the estimator in every process, or build the baseline with "
                f"average_over_processes=False. ({error})"
            ) from error
        return (totals[:-1] / totals[-1]).unbind()


def _generator_state(device: torch.device) -> bytes:
    """Identify the place in the stream of random numbers at which a call stands: the same only in a repeated pass."""
    state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    return hashlib.blake2b(state.numpy().tobytes(), digest_size=16).digest()
