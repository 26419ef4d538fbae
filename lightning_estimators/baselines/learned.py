"""A network that predicts the cost from the data, as in NVIL."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_estimators.baselines.base import Baseline, average_over_ranks
from lightning_estimators.noise import current_scope, is_replaying

__all__ = ["LearnedBaseline"]


class LearnedBaseline(Baseline):
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

    Raises:
        ValueError: decay is outside [0, 1), or no context is given.

    Source: Mnih & Gregor (2014), *Neural variational inference and learning in belief networks*, algorithm 1.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> signal, loss = LearnedBaseline()(torch.ones(1, 4), torch.randn(4, 3))
        >>> signal.shape, loss.shape, loss.requires_grad
        (torch.Size([1, 4]), torch.Size([1, 4]), True)
    """

    needs_context: ClassVar[bool] = True
    average: Tensor
    previous: Tensor
    variance: Tensor
    started: Tensor

    def __init__(self, network: nn.Module | None = None, normalize: bool = False, decay: float = 0.9) -> None:  # noqa: FBT001
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"LearnedBaseline needs a decay in [0, 1), got {decay!r}.")
        if network is None:
            network = nn.Sequential(nn.LazyLinear(100), nn.Tanh(), nn.Linear(100, 1))
        self.network = network
        self.normalize = normalize
        self.decay = decay
        for name in ("average", "variance", "started"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("previous", torch.zeros(()), persistent=False)
        self.scope = 0

    def is_unbiased(self) -> bool:
        """Whether the signal keeps the mean of the gradient: not when it is normalized."""
        return not self.normalize

    def prepare(self, context: Tensor | None) -> None:
        """Refuse a missing context; size the network."""
        super().prepare(context)
        try:
            with torch.no_grad():
                self.network(context)
        except RuntimeError as error:
            features = "no features" if context is None else f"the {context.shape[-1]} features of the context"
            raise ValueError(
                f"the network of LearnedBaseline, {type(self.network).__name__}, cannot be evaluated ({error}). Its "
                f"input has {features}: make its first layer that wide, or torch.nn.LazyLinear."
            ) from error

    def forward(self, cost: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the (normalized) signal and its square before normalization."""
        Baseline.prepare(self, context)
        prediction = self.network(context).squeeze(-1)
        given = () if context is None else tuple(context.shape)
        if prediction.shape != given[:-1]:
            raise ValueError(
                f"the network of LearnedBaseline must map (..., features) to (..., 1): for a context of shape {given} "
                f"it returned {tuple(prediction.shape)} after squeezing."
            )
        residual = cost - prediction.to(cost.dtype)
        # Noise that is drawn again by an enclosing control variate has already entered the average: use the one before.
        again = self.training and is_replaying()
        error = residual - (self.previous if again else self.average).to(cost.dtype)
        signal = error.detach()
        if self.normalize:
            signal = signal / self.variance.to(cost.dtype).sqrt().clamp_min(1.0)
        if self.training and not again:
            # One control variate may replay all calls of a scope: remember the average from before them.
            if (now := current_scope()) != self.scope:
                self.previous.copy_(self.average)
                self.scope = now
            # After use: what is subtracted above knows only past costs.
            moments = torch.stack([residual.detach().mean(), error.detach().square().mean()])
            mean, square = average_over_ranks(moments).to(self.average.dtype)
            keep = self.decay * self.started
            self.average.copy_(keep * self.average + (1 - keep) * mean)
            self.variance.copy_(keep * self.variance + (1 - keep) * square)
            self.started.fill_(1.0)
        return signal, error.square()

    def diagnostics(self) -> dict[str, Tensor]:
        """Return `baseline`, the moving average c, and `signal_variance`, that of the squared signal."""
        return {"baseline": self.average.detach().clone(), "signal_variance": self.variance.detach().clone()}

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"normalize={self.normalize}, decay={self.decay}"
