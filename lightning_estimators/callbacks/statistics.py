"""Mean and variance of one group of gradient entries, and the figures they are logged as."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["GroupStatistics", "flatten"]


@dataclass(frozen=True)
class GroupStatistics:
    """What is known of the gradient with respect to one group.

    Attributes:
        total_variance: Sum over the entries of their variances, 0-d.
        mean_norm: Euclidean norm of the mean gradient, 0-d.
        entries: Number of entries, 0-d.
    """

    total_variance: Tensor
    mean_norm: Tensor
    entries: Tensor

    def figures(self) -> dict[str, Tensor]:
        """Return what `GradientVariance` logs of a group, by the last part of the key.

        Example:
            >>> statistics = GroupStatistics(torch.tensor(8.0), torch.tensor(2.0), torch.tensor(4.0))
            >>> {name: round(float(figure), 3) for name, figure in statistics.figures().items()}
            {'variance': 2.0, 'log_variance': 0.693, 'snr': 0.707}
        """
        variance = self.total_variance / self.entries
        # No gradient at all is no signal, also where there is no noise.
        snr = torch.where(self.mean_norm > 0, self.mean_norm / self.total_variance.sqrt(), self.mean_norm)
        return {"variance": variance, "log_variance": variance.log(), "snr": snr}


def flatten(parts: list[Tensor]) -> Tensor:
    """Join to one vector, in at least float32: half precision would round differences between estimates away."""
    return torch.cat([p.detach().reshape(-1).to(torch.promote_types(p.dtype, torch.float32)) for p in parts])
