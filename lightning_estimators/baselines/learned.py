"""A network that predicts the cost from the data, as in NVIL."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_estimators.baselines.base import Baseline
from lightning_estimators.baselines.running import RunningBaseline

__all__ = ["LearnedBaseline"]


class LearnedBaseline(RunningBaseline):
    r"""Subtracts a prediction from the context and the moving average c of what it left: $f - b_\psi(x) - c$.

    ψ minimises the squared signal, by the surrogate optimizer. With `normalize`, the signal is divided by
    $\max(1, \sqrt v)$, v a moving average of its variance: a positive multiple of an unbiased gradient, so the
    direction is right in the mean and the length is not, which `is_unbiased` says.

    Requirements: the estimator is called with a context. Cost: one evaluation of the network.

    Args:
        network: Maps context features to one number, `(..., features) -> (..., 1)`; by default one hidden layer of
            100 tanh units, sized at the first call.
        normalize: Whether to divide by the standard deviation of the signal.
        decay: Of the moving averages, of past residuals and of their variance, in [0, 1).
        average_over_processes: Whether the costs of all processes enter the averages, as for `MovingAverage`.

    Raises:
        ValueError: decay is outside [0, 1), or no context is given.

    Source: Mnih & Gregor (2014), *Neural variational inference and learning in belief networks*, algorithm 1,
    https://arxiv.org/abs/1402.0030.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> signal, loss = LearnedBaseline()(torch.ones(1, 4), torch.randn(4, 3))
        >>> signal.shape, loss.shape, loss.requires_grad
        (torch.Size([1, 4]), torch.Size([1, 4]), True)
    """

    needs_context: ClassVar[bool] = True
    average: Tensor
    variance: Tensor

    def __init__(
        self,
        network: nn.Module | None = None,
        normalize: bool = False,  # noqa: FBT001
        decay: float = 0.9,
        average_over_processes: bool | None = None,  # noqa: FBT001
    ) -> None:
        super().__init__(decay, ("average", "variance"), average_over_processes)
        if network is None:
            network = nn.Sequential(nn.LazyLinear(100), nn.Tanh(), nn.Linear(100, 1))
        self.network, self.normalize = network, normalize

    def is_unbiased(self) -> bool:
        """Whether the signal keeps the mean of the gradient: not when it is normalized."""
        return not self.normalize

    def prepare(self, context: Tensor | None) -> None:
        """Refuse a missing context; size the network."""
        super().prepare(context)
        with torch.no_grad():
            self._predict(context)

    def forward(self, cost: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the (normalized) signal and its square before normalization."""
        Baseline.prepare(self, context)
        prediction = self._predict(context)
        given = () if context is None else tuple(context.shape)
        if prediction.shape != given[:-1]:
            raise ValueError(
                f"the network of LearnedBaseline must map (..., features) to (..., 1): for a context of shape {given} "
                f"it returned {tuple(prediction.shape)} after squeezing."
            )
        average, variance = (figure.to(cost.dtype) for figure in self.past_averages(cost))
        residual = cost - prediction.to(cost.dtype)
        error = residual - average
        signal = error.detach()
        if self.normalize:
            signal = signal / variance.sqrt().clamp_min(1.0)
        self.take_in(cost, residual.detach(), error.detach().square())
        return signal, error.square()

    def _predict(self, context: Tensor | None) -> Tensor:
        try:
            prediction: Tensor = self.network(context).squeeze(-1)
        except (RuntimeError, AssertionError) as error:  # torch asserts the width of lazy layers with a loaded state
            features = "no features" if context is None else f"the {context.shape[-1]} features of the context"
            raise ValueError(
                f"the network of LearnedBaseline, {type(self.network).__name__}, cannot be evaluated ({error}). Its "
                f"input has {features}: make its first layer that wide, or torch.nn.LazyLinear."
            ) from error
        return prediction

    def diagnostics(self) -> dict[str, Tensor]:
        """Return `baseline`, the moving average c, `signal_variance`, that of the squared signal, and `skipped`."""
        own = {"baseline": self.average.detach().clone(), "signal_variance": self.variance.detach().clone()}
        return {**super().diagnostics(), **own}

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"normalize={self.normalize}, {super().extra_repr()}"
