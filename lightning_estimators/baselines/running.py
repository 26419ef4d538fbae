"""Moving averages of past costs: what a baseline may subtract."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_estimators.baselines.base import Baseline
from lightning_estimators.running_statistics import RunningStatistics

__all__ = ["RunningBaseline"]


class RunningBaseline(RunningStatistics, Baseline):
    r"""A baseline that keeps exponential moving averages, $c \leftarrow \rho c + (1 - \rho) \bar f$.

    The averages start at the first figures seen. What is subtracted from a cost never contains it (`RunningStatistics`
    says what that takes), and figures that are not finite, and those of an empty batch, are left out. All statistics
    are buffers.

    Implementing one: subtract entries of `past_averages(cost)`, then call `take_in` with the figures.

    Args:
        decay: ρ, in [0, 1).
        statistics: Names of the averages, which become buffers.
        average_over_processes: Whether the figures of all processes enter; see the subclasses.

    Raises:
        ValueError: decay is outside [0, 1).
    """

    started: Tensor

    def __init__(self, decay: float, statistics: Sequence[str], average_over_processes: bool | None) -> None:  # noqa: FBT001
        super().__init__({name: torch.zeros(()) for name in (*statistics, "started")}, average_over_processes)
        if not 0 <= decay < 1:
            raise ValueError(f"{type(self).__name__} needs a decay in [0, 1), got {decay!r}.")
        self.decay = decay

    def past_averages(self, cost: Tensor) -> Sequence[Tensor]:
        """Return what may be subtracted from a cost: the averages, in the order of their names.

        Args:
            cost: As `forward` got it.
        """
        return self.past(cost.device)[:-1]

    def take_in(self, cost: Tensor, *figures: Tensor) -> None:
        """Let the figures of a call enter the averages, one tensor for each; call it after `past_averages`.

        Args:
            cost: As `forward` got it.
            figures: Of the shape of cost; their means enter.
        """
        if not self.takes_in(cost.device, repeated=self.is_repeated(cost.device)):
            return
        *averages, started = self._statistics()
        if self.sums_over_processes():
            count = figures[0].new_tensor(float(figures[0].numel()))
            *totals, count = self.sum_over_processes([*(figure.sum() for figure in figures), count])
            means = [total / count for total in totals]
        elif cost.numel():
            means = [figure.mean() for figure in figures]
        else:
            self._calls += 1
            return
        # `started` is 0 at first, so that the averages jump to the first figures; no branch, no host sync.
        keep = self.decay * started
        new = [torch.lerp(mean.to(old.dtype), old, keep) for mean, old in zip(means, averages, strict=True)]
        self.replace([*new, torch.ones_like(started)])

    def diagnostics(self) -> dict[str, Tensor]:
        """Return `skipped`, the calls of this process that were left out because a figure was not finite."""
        return {**Baseline.diagnostics(self), **RunningStatistics.diagnostics(self)}

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"decay={self.decay}, average_over_processes={self.average_over_processes}"
