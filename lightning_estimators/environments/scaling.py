"""Observations on one scale: running means and standard deviations of everything seen in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["RunningScale"]


class RunningScale:
    r"""Maps an observation x to $(x - \mu) / \sigma$, clipped, by the mean and deviation of all observations so far.

    The statistics change only in `take_in`, so that all observations of a batch are on one scale and a policy sees the
    same numbers when it acts and when it learns. Before the first `take_in`, observations are left as they are.

    Args:
        size: Entries of an observation.
        limit: Bound of the absolute values of what is returned.

    Example:
        >>> import numpy as np
        >>> scale = RunningScale(2)
        >>> scale.take_in(np.array([[0.0, 5.0], [2.0, 5.0]]))
        >>> scale(np.array([[3.0, 5.0]])).tolist()
        [[2.0, 0.0]]
    """

    def __init__(self, size: int, limit: float = 10.0) -> None:
        self.limit = limit
        self._count = 0.0
        self._mean = np.zeros(size)
        self._squares = np.zeros(size)  # sum of squared deviations from the mean
        self._factors()

    def __call__(self, observations: Any, out: Any = None) -> Any:
        """Return scaled observations.

        Args:
            observations: NumPy array, shape `(..., size)`.
            out: Array for the result, of the same shape; None for a new one of float32.
        """
        if out is None:
            out = np.empty(observations.shape, dtype=np.float32)
        np.subtract(observations, self._shift, out=out, casting="same_kind")
        np.multiply(out, self._factor, out=out)
        np.minimum(out, self.limit, out=out)
        return np.maximum(out, -self.limit, out=out)

    def take_in(self, observations: Any, total: Callable[[Tensor], Tensor] | None = None) -> None:
        """Add a batch of observations to the statistics.

        Args:
            observations: NumPy array, shape `(..., size)`.
            total: Adds a tensor of float64 up over processes, which all call this; None for one process.
        """
        flat = np.asarray(observations, dtype=np.float64).reshape(-1, len(self._mean))
        # Relative to the mean so far, which all processes share, so that large offsets cost few digits.
        flat = flat - self._mean
        sums = np.concatenate([[float(len(flat))], flat.sum(0), np.square(flat).sum(0)])
        if total is not None:
            sums = total(torch.from_numpy(sums)).numpy(force=True)
        count, first, second = sums[0], *np.split(sums[1:], 2)
        shift = first / (self._count + count)
        self._squares = np.maximum(self._squares + second - (self._count + count) * np.square(shift), 0.0)
        self._mean = self._mean + shift
        self._count += count
        self._factors()

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics as plain data."""
        mean, squares = torch.from_numpy(self._mean.copy()), torch.from_numpy(self._squares.copy())
        return {"count": float(self._count), "mean": mean, "squares": squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the statistics that `state_dict` returned.

        Raises:
            ValueError: They are of observations of another size.
        """
        if len(state["mean"]) != len(self._mean):
            raise ValueError(
                f"the checkpoint's statistics are of observations with {len(state['mean'])} entries; this environment "
                f"has {len(self._mean)}. Use the environment that the policy was trained in."
            )
        self._count = float(state["count"])
        self._mean, self._squares = state["mean"].double().numpy().copy(), state["squares"].double().numpy().copy()
        self._factors()

    def _factors(self) -> None:
        deviation = np.sqrt(self._squares / self._count) if self._count else np.ones_like(self._mean)
        # An entry that never changed is 0 after the shift, whatever it is divided by.
        deviation = np.where(deviation > 1e-6 * (1 + np.abs(self._mean)), deviation, 1.0)
        self._shift, self._factor = self._mean.astype(np.float32), (1 / deviation).astype(np.float32)
