"""Actions that are real numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from lightning_estimators.policies.actions import ActionDistribution, in_full_precision

__all__ = ["GaussianActions"]


class GaussianActions(ActionDistribution):
    r"""D independent normal variables: $\pi(a|s) = \prod_d N(a_d; \mu_d(s), \sigma_d^2)$, event_shape (D,).

    The network gives the means; the scales are parameters of this module, the same in all states. It is the form of
    gymnasium's `Box`. Where the box is bounded, what the environment gets is clipped to it, and the policy learns from
    the unclipped action, which is what was drawn from its density.

    Args:
        size: The number D of entries of an action.
        initial_scale: σ at the start, in units of the action.

    Raises:
        ValueError: There is no entry, or the scale is not positive; a mask is given.

    Example:
        >>> import torch
        >>> q = GaussianActions(2, initial_scale=0.5)(torch.zeros(4, 2))
        >>> q.batch_shape, q.event_shape, [round(s, 3) for s in q.stddev[0].tolist()]
        (torch.Size([4]), torch.Size([2]), [0.5, 0.5])
    """

    def __init__(self, size: int, initial_scale: float = 1.0) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"GaussianActions needs at least one entry, got {size}.")
        if not 0 < initial_scale < math.inf:
            raise ValueError(f"GaussianActions needs a positive, finite initial_scale, got {initial_scale!r}.")
        self.size = self.num_outputs = size
        self.initial_scale = initial_scale
        self.log_scale = nn.Parameter(torch.full((size,), math.log(initial_scale)))

    def forward(self, outputs: Tensor, mask: Tensor | None = None) -> Distribution:
        """Return normal variables of event_shape (D,)."""
        if mask is not None:
            raise ValueError("GaussianActions takes no action mask: only choices among alternatives are masked.")
        loc = in_full_precision(outputs)
        scale = self.log_scale.to(loc.dtype).exp().expand_as(loc)
        return Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)

    def act(self, outputs: Tensor, mask: Tensor | None = None, *, greedy: bool = False) -> tuple[Tensor, Tensor]:
        """Return actions as environments take them, and their log-densities."""
        if mask is not None:
            return super().act(outputs, mask, greedy=greedy)  # which refuses it
        loc = in_full_precision(outputs)
        log_scale = self.log_scale.to(loc.dtype)
        noise = torch.zeros_like(loc) if greedy else torch.randn_like(loc)
        log_density = -0.5 * noise.square() - log_scale - 0.5 * math.log(2 * math.pi)
        return torch.addcmul(loc, noise, log_scale.exp()), log_density.sum(-1)

    def exploration(self, q: Distribution, mask: Tensor | None = None) -> Tensor:
        """Return the geometric mean of the scales over the one that they started at."""
        return self.log_scale.detach().mean().exp() / self.initial_scale

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"size={self.size}, initial_scale={self.initial_scale}"
