"""What REINFORCE can subtract from the cost without changing the mean of its gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from lightning_estimators.configurable import Configurable

__all__ = ["Baseline"]


class Baseline(Configurable, nn.Module, ABC):
    """Turns costs into learning signals.

    Implementing one: `forward` returns the signal, and what own parameters minimise. The signal of a sample may
    depend on that sample only through its own cost, linearly: what is subtracted uses the *past*, the *context* or
    *other* samples. One that folds the current cost into the average it subtracts is biased (by the factor `decay`).
    """

    min_samples: ClassVar[int] = 1
    """The least `num_samples` of the estimator that makes sense."""
    needs_independent_samples: ClassVar[bool] = False
    """Whether the samples must be independent of one another: no `coupling`."""
    needs_context: ClassVar[bool] = False
    """Whether the estimator must be called with a context."""

    @abstractmethod
    def forward(self, cost: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the learning signal and the loss of own parameters.

        Args:
            cost: f at the samples, detached, shape `(num_samples,) + batch_shape`.
            context: Features of the batch, broadcastable to `batch_shape + (features,)`, or None.

        Returns:
            The signal, detached, and the loss of own parameters or None, both of the shape of cost.
        """

    def is_unbiased(self) -> bool:
        """Whether the signal keeps the mean of the gradient; it does unless this is overridden."""
        return True

    def prepare(self, context: Tensor | None) -> None:
        """Give learned parts of unknown size their size.

        Raises:
            ValueError: The baseline needs a context and there is none.
        """
        if self.needs_context and context is None:
            raise ValueError(
                f"{type(self).__name__} predicts the cost from the context, got none. "
                "Call estimator(q, f, context=x), or use a baseline without input such as MovingAverage."
            )

    def diagnostics(self) -> dict[str, Tensor]:
        """Figures worth a curve: detached 0-d tensors by name."""
        return {}
