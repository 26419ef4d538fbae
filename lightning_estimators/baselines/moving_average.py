"""The exponential moving average of past costs."""

from __future__ import annotations

from torch import Tensor

from lightning_estimators.baselines.running import RunningBaseline

__all__ = ["MovingAverage"]


class MovingAverage(RunningBaseline):
    r"""Subtracts the average of *past* costs: $f - c$, then $c \leftarrow \rho c + (1 - \rho) \bar f$.

    The average starts at the mean of the first costs seen, which are themselves used with $c = 0$: the current cost
    is never in what is subtracted from it, also where it is evaluated again (`RunningBaseline`). Frozen in eval mode.
    Costs that are not finite, and empty batches, do not enter.

    Args:
        decay: ρ, in [0, 1).
        average_over_processes: Whether the costs of all processes enter the average: None for only where all processes
            are known to take part, inside the forward pass of `DistributedDataParallel` (as Lightning's "ddp" has it);
            True for always, which waits for the others; False for never, where each process has an average of its own.

    Raises:
        ValueError: decay is outside [0, 1).
        RuntimeError: Another process did not call the estimator in time.

    Source: Williams (1992), https://doi.org/10.1007/BF00992696. On the bias of an average that takes the current cost
    in first: Mnih & Gregor (2014), *Neural variational inference and learning in belief networks*, section 2.3,
    https://arxiv.org/abs/1402.0030.

    Example:
        >>> import torch
        >>> baseline = MovingAverage(decay=0.5)
        >>> [round(baseline(torch.tensor([c]), None)[0].item(), 3) for c in (4.0, 4.0, 2.0, 2.0)]
        [4.0, 0.0, -2.0, -1.0]
    """

    average: Tensor

    def __init__(self, decay: float = 0.99, average_over_processes: bool | None = None) -> None:  # noqa: FBT001
        super().__init__(decay, ("average",), average_over_processes)

    def forward(self, cost: Tensor, context: Tensor | None) -> tuple[Tensor, None]:
        """Return the cost less the average of past costs, then take the current ones in."""
        (average,) = self.past_averages(cost)
        signal = cost - average.to(cost.dtype)
        self.take_in(cost, cost)
        return signal, None

    def diagnostics(self) -> dict[str, Tensor]:
        """Return `baseline`, the average, and `skipped`."""
        return {**super().diagnostics(), "baseline": self.average.detach().clone()}
