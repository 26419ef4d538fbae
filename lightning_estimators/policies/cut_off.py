"""Notices returns that end because the batch ends."""

from __future__ import annotations

import warnings

from lightning_estimators.rollout import Rollout

__all__ = ["CutOffWatch"]

CUT_OFF = 0.1
"""Share of the steps of a batch whose returns the end of the batch may cut off before a policy without critic warns."""


class CutOffWatch:
    """Warns, once, when many steps belong to episodes of which the batch does not have the end.

    Without a critic their returns end with the batch, which biases the gradient.

    Example:
        >>> watch = CutOffWatch()  # watch.look(batch) for every batch
    """

    def __init__(self) -> None:
        self._has_warned = False

    def look(self, rollout: Rollout) -> None:
        """Warn if the ends of many episodes are missing."""
        if self._has_warned:
            return
        ended = rollout.terminated | rollout.truncated
        has_end = ended.flip(0).cumsum(0).flip(0) > 0
        share = 1 - has_end.float().mean().item()
        if share > CUT_OFF:
            self._has_warned = True
            warnings.warn(
                f"{share:.0%} of the steps of a batch belong to episodes that go on after it. Without a critic their "
                "returns end with the batch, which biases the gradient. Collect more steps in each environment, or "
                "use a critic.",
                stacklevel=2,
            )
