"""Every sample's baseline is the mean cost of the others."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from lightning_estimators.baselines.base import Baseline

__all__ = ["LeaveOneOut"]


class LeaveOneOut(Baseline):
    r"""Subtracts the mean cost of the other samples: $f_s - \frac{1}{S-1} \sum_{r \ne s} f_r$.

    Requirements: `num_samples` of at least 2, independent. Cost: nothing beyond the S evaluations of f.

    Source: Kool, van Hoof & Welling (2019), *Buy 4 REINFORCE samples, get a baseline for free!*,
    https://openreview.net/forum?id=r1lgTGL5DE; Mnih & Rezende (2016), *Variational inference for Monte Carlo
    objectives*, https://arxiv.org/abs/1602.06725.

    Example:
        >>> import torch
        >>> LeaveOneOut()(torch.tensor([[1.0], [2.0], [6.0]]), None)[0].flatten()
        tensor([-3.0000, -1.5000,  4.5000])
    """

    min_samples: ClassVar[int] = 2
    needs_independent_samples: ClassVar[bool] = True

    def forward(self, cost: Tensor, context: Tensor | None) -> tuple[Tensor, None]:
        """Return S/(S-1) times the centred cost, which is the same."""
        samples = cost.shape[0]
        return (cost - cost.mean(0)) * (samples / (samples - 1)), None
