"""Actions that are switches."""

from __future__ import annotations

import math

from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent

from lightning_estimators.policies.actions import ActionDistribution, in_full_precision

__all__ = ["BinaryActions"]


class BinaryActions(ActionDistribution):
    r"""D independent switches: $\pi(a|s) = \prod_d \mathrm{Bernoulli}(a_d)$, event_shape (D,).

    Environments get integers 0 and 1, as gymnasium's `MultiBinary` has them.

    Args:
        size: The number D of switches.

    Raises:
        ValueError: There is none; a mask is given.

    Example:
        >>> import torch
        >>> q = BinaryActions(3)(torch.zeros(4, 3))
        >>> q.batch_shape, q.event_shape
        (torch.Size([4]), torch.Size([3]))
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"BinaryActions needs at least one switch, got {size}.")
        self.size = self.num_outputs = size

    def forward(self, outputs: Tensor, mask: Tensor | None = None) -> Distribution:
        """Return Bernoulli variables of event_shape (D,)."""
        if mask is not None:
            raise ValueError("BinaryActions takes no action mask: only choices among alternatives are masked.")
        return Independent(Bernoulli(logits=in_full_precision(outputs), validate_args=False), 1, validate_args=False)

    def exploration(self, q: Distribution, mask: Tensor | None = None) -> Tensor:
        """Return the mean entropy over its maximum, that of setting every switch by chance."""
        return q.entropy().detach().mean() / (self.size * math.log(2))

    def greedy(self, q: Distribution) -> Tensor:
        """Return each switch's more probable state; off where both are equally so."""
        return (q.mean > 0.5).to(q.mean.dtype)

    def to_environment(self, samples: Tensor) -> Tensor:
        """Return integers, shape (..., D)."""
        return samples.long()

    def from_environment(self, actions: Tensor) -> Tensor:
        """Return floating numbers, shape (..., D)."""
        return actions.float()

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"size={self.size}"
