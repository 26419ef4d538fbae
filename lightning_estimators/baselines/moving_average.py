"""The exponential moving average of past costs."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_estimators.baselines.base import Baseline, average_over_ranks
from lightning_estimators.noise import current_scope, is_replaying

__all__ = ["MovingAverage"]


class MovingAverage(Baseline):
    r"""Subtracts the average of *past* costs: $f - c$, then $c \leftarrow \rho c + (1 - \rho) \bar f$.

    The average starts at the mean of the first costs seen, which are themselves used with $c = 0$: the current cost
    is never in what is subtracted from it. Where an enclosing control variate asks for the same noise once more, so is
    the average from before that noise. Under distributed training the costs of all ranks enter. Frozen in eval mode.

    Args:
        decay: ρ, in [0, 1).

    Raises:
        ValueError: decay is outside [0, 1).

    Source: Williams (1992); for its bias when updated first see Mnih & Gregor (2014), *NVIL*, section 2.3.

    Example:
        >>> import torch
        >>> baseline = MovingAverage(decay=0.5)
        >>> [round(baseline(torch.tensor([c]), None)[0].item(), 3) for c in (4.0, 4.0, 2.0, 2.0)]
        [4.0, 0.0, -2.0, -1.0]
    """

    average: Tensor
    previous: Tensor
    started: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"MovingAverage needs a decay in [0, 1), got {decay!r}.")
        self.decay = decay
        self.register_buffer("average", torch.zeros(()))
        self.register_buffer("started", torch.zeros(()))
        self.register_buffer("previous", torch.zeros(()), persistent=False)
        self.scope = 0

    def forward(self, cost: Tensor, context: Tensor | None) -> tuple[Tensor, None]:
        """Return the cost less the average of past costs, then take the current ones in."""
        again = self.training and is_replaying()
        signal = cost - (self.previous if again else self.average).to(cost.dtype)
        if self.training and not again:
            # One control variate may replay all calls of a scope: remember the average from before them.
            if (now := current_scope()) != self.scope:
                self.previous.copy_(self.average)
                self.scope = now
            current = average_over_ranks(cost.mean()).to(self.average.dtype)
            # `started` is 0 at the first call, so that the average jumps to the first costs; no branch, no host sync.
            keep = self.decay * self.started
            self.average.copy_(keep * self.average + (1 - keep) * current)
            self.started.fill_(1.0)
        return signal, None

    def diagnostics(self) -> dict[str, Tensor]:
        """Return `baseline`, the average."""
        return {"baseline": self.average.detach().clone()}

    def extra_repr(self) -> str:
        """Show the decay."""
        return f"decay={self.decay}"
