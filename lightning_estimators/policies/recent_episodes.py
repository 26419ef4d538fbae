"""The episodes that ended last: how they went, and whether the policy has stopped exploring while they got worse."""

from __future__ import annotations

import warnings
from collections import deque

import torch
from torch import Tensor

from lightning_estimators.rollout import Rollout

__all__ = ["RecentEpisodes"]

WINDOW = 100
COLLAPSED = 0.01
"""Share of the most random that a policy can be, below which it hardly explores."""


class RecentEpisodes:
    """Returns and lengths of the last 100 episodes that ended while this process was training.

    Example:
        >>> recent = RecentEpisodes()
        >>> recent.returns.extend([1.0, 2.0]); recent.lengths.extend([10.0, 20.0])
        >>> recent.sums()
        tensor([ 3., 30.,  2.], dtype=torch.float64)
    """

    def __init__(self) -> None:
        self.returns: deque[float] = deque(maxlen=WINDOW)
        self.lengths: deque[float] = deque(maxlen=WINDOW)
        self._has_warned = False

    def add(self, rollout: Rollout) -> None:
        """Take in the episodes that ended in a rollout, in the order in which they ended."""
        ended = (rollout.terminated | rollout.truncated).cpu()
        self.returns.extend(rollout.episode_returns.cpu()[ended].tolist())
        self.lengths.extend((rollout.elapsed_steps.cpu()[ended] + 1).tolist())

    def sums(self) -> Tensor:
        """Return the sum of the returns, the sum of the lengths, and how many there are."""
        return torch.tensor([sum(self.returns), sum(self.lengths), len(self.returns)], dtype=torch.float64)

    def warn_if_collapsed(self, exploration: float) -> None:
        """Warn, once, if the policy is hardly random any more while returns fall.

        Such a policy takes the same action whatever happens, so nothing is left to learn from. Returns fall if the
        newer half of the last 100 episodes had less than the older half in the mean.

        Args:
            exploration: How random the policy is, as a share of the most that it can be, see
                `ActionDistribution.exploration`.
        """
        if self._has_warned or exploration >= COLLAPSED or len(self.returns) < WINDOW:
            return
        returns, half = list(self.returns), WINDOW // 2
        older, newer = sum(returns[:half]) / half, sum(returns[half:]) / half
        if newer < older:
            self._has_warned = True
            warnings.warn(
                f"the policy has collapsed: it is {exploration:.2%} as random as it could be, and the mean return of "
                f"the last {half} episodes is {newer:.4g}, after {older:.4g} in the {half} before them. It will hardly "
                "recover. Start again with a lower learning rate of the policy, a larger entropy_coef, or a tighter "
                "max_gradient_norm.",
                stacklevel=2,
            )
