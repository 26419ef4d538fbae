"""Notices a policy that has stopped exploring while it gets worse."""

from __future__ import annotations

import warnings
from collections import deque

from lightning_estimators.rollout import Rollout, ended_episodes

__all__ = ["CollapseWatch"]

WINDOW = 100
COLLAPSED = 0.01
"""Share of the most random that a policy can be, below which it hardly explores."""


class CollapseWatch:
    """Warns, once, when a policy is hardly random any more while its returns fall.

    Such a policy takes the same action whatever happens, so nothing is left to learn from. Returns fall if the newer
    half of the last 100 episodes had less than the older half in the mean.

    Example:
        >>> watch = CollapseWatch()
        >>> watch.returns.extend([1.0] * 50 + [0.0] * 50)
        >>> watch.look(exploration=0.5)  # no warning: it still explores
    """

    def __init__(self) -> None:
        self.returns: deque[float] = deque(maxlen=WINDOW)
        self._has_warned = False

    def add(self, rollout: Rollout) -> None:
        """Take in the episodes that ended in a rollout, in the order in which they ended."""
        self.returns.extend(ended_episodes(rollout)[0])

    def look(self, exploration: float) -> None:
        """Warn if the policy has collapsed.

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
