"""A scale for advantages that none of them has a part in itself."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["PastScale"]


class PastScale(nn.Module):
    r"""Divides advantages by the root of the moving average of the squares of *past* advantages.

    Every advantage of a batch is divided by the same number, which does not depend on the batch: the gradient is a
    positive multiple of what it was, and unbiased up to that. The first batch is left as it is. In training mode the
    batch then enters the average, $v \leftarrow \rho v + (1 - \rho)\, \overline{A^2}$, over all processes.

    Args:
        decay: ρ, in [0, 1).

    Raises:
        ValueError: The decay is outside [0, 1).

    Example:
        >>> import torch
        >>> scale = PastScale()
        >>> [scale(torch.tensor([a, -a])).tolist() for a in (2.0, 4.0)]
        [[2.0, -2.0], [2.0, -2.0]]
    """

    mean_square: Tensor
    started: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"PastScale needs a decay in [0, 1), got {decay!r}.")
        self.decay = decay
        self.register_buffer("mean_square", torch.ones(()))
        self.register_buffer("started", torch.zeros(()))

    def forward(self, advantages: Tensor) -> Tensor:
        """Return the scaled advantages, of any shape, without gradient."""
        advantages = advantages.detach()
        tiny = torch.finfo(self.mean_square.dtype).tiny
        scaled = advantages / self.mean_square.clamp_min(tiny).sqrt().to(advantages.dtype)
        if self.training:
            square = advantages.square().mean().to(self.mean_square.dtype)
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(square)
                square = square / dist.get_world_size()
            self.mean_square.copy_(torch.lerp(square, self.mean_square, self.decay * self.started))
            self.started.fill_(1.0)
        return scaled
