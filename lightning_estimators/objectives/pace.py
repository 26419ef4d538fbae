"""A watch on loops that may take very long: a warning or an error early, instead of a program that seems to hang."""

from __future__ import annotations

import time
import warnings

__all__ = ["Pace"]

_SLOW, _HOPELESS = 60.0, 600.0  # seconds for one call of an estimator
_MEASURED = 1.0  # seconds after which the speed of the loop is known well enough


class Pace:
    """Estimates how long a loop will take: warns if that is more than a minute, and raises if it is more than ten.

    Args:
        count: How many points the loop evaluates.
    """

    def __init__(self, count: int) -> None:
        self.count, self.first = count, 0
        self.began: float | None = None
        self.told = False

    def check(self, done: int) -> None:
        """Estimate the remaining time once, from all chunks but the first one, which may include starting costs.

        Args:
            done: How many points have been evaluated.

        Raises:
            ValueError: The loop would take more than ten minutes.
        """
        now = time.monotonic()
        if self.began is None:
            self.began, self.first = now, done
        if self.told or done == self.first or now - self.began < _MEASURED:
            return
        self.told = True
        expected = (now - self.began) / (done - self.first) * (self.count - done)
        if expected < _SLOW:
            return
        message = (
            f"evaluating f with each coordinate changed in turn takes {self.count} points, and at the pace of the "
            f"first {done} about {expected / 60:.0f} minutes more for this one call. Give f as an objective that knows "
            "its structure (lightning_estimators.objectives), or use an estimator that evaluates f a few times, such "
            "as REINFORCE or REBAR."
        )
        if expected > _HOPELESS:
            raise ValueError(message)
        warnings.warn(message, stacklevel=2)
