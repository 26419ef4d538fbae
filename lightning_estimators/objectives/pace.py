"""How long a loop over changed points will take, told before it is over."""

from __future__ import annotations

import time
import warnings

__all__ = ["Pace"]

_SLOW, _HOPELESS = 60.0, 600.0  # seconds for one call of an estimator
_MEASURED = 1.0  # seconds after which the pace is known well enough


class Pace:
    """Watches a loop: warns once if it will take more than a minute, and gives up if it will take more than ten.

    Args:
        count: How many points there are in all.
    """

    def __init__(self, count: int) -> None:
        self.count, self.first = count, 0
        self.began: float | None = None
        self.told = False

    def check(self, done: int) -> None:
        """Compare the pace so far with what is left; the first chunk, which may be spent on warming up, does not count.

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
