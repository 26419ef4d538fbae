"""Nothing is subtracted."""

from __future__ import annotations

from torch import Tensor

from lightning_estimators.baselines.base import Baseline

__all__ = ["NoBaseline"]


class NoBaseline(Baseline):
    """The plain score function: the signal is the cost itself. For comparison; its variance is large.

    Source: Williams (1992), *Simple statistical gradient-following algorithms for connectionist reinforcement
    learning*, https://doi.org/10.1007/BF00992696.
    """

    def forward(self, cost: Tensor, context: Tensor | None) -> tuple[Tensor, None]:
        """Return the cost."""
        return cost, None
