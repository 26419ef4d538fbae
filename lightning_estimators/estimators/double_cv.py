"""Double control variates: leave-one-out, with the slopes of f at the other samples."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, OneHotCategorical

from lightning_estimators.arguments import check_finite
from lightning_estimators.distributions import sample
from lightning_estimators.estimators.base import GradientEstimator
from lightning_estimators.estimators.cost_gradient import value_and_gradient
from lightning_estimators.estimators.estimate import Estimate
from lightning_estimators.estimators.relaxation import gradients_of_parameters, score, times_covariance
from lightning_estimators.objectives import Objective

__all__ = ["DoubleCV"]


class DoubleCV(GradientEstimator):
    r"""Estimates the gradient by the score function, less what a linear model of f explains; unbiased.

    With K samples $z_k$ of mean μ, $\bar f'_{-k}$ the mean slope of f at all of them but the k-th,
    $c_k = \alpha\, (z_k - \mu)^T \bar f'_{-k}$, and $\bar x_{-k}$ the mean of $x_j$ over all j but k,

    $\hat g = \frac1K \sum_k [(f_k + c_k) - \overline{(f + c)}_{-k}] \nabla_l \log q(z_k)
    - \alpha \operatorname{Cov}(z) \frac1K \sum_k f'(z_k)$

    with Cov(z) = p (1 − p) for Bernoullis and $\operatorname{diag}(\pi) - \pi\pi^T$ for categoricals. α minimises the
    variance of $\hat g$. At 0, where it starts, this is `REINFORCE(LeaveOneOut())`; −1 suits an f that is linear, whose
    gradient is then exact.

    Requirements: an f that is differentiable in z; samples that are independent. Cost: one evaluation of f and one of
    its gradient per sample. Where f has parameters (a decoder) their gradient takes most of that anyway.

    Args:
        alpha: α, or where it starts if learned. It is negative where the model helps (the sign is that of the paper).
        learn_alpha: Whether α is trained.
        num_samples: K, samples per batch element, at least 2.

    Raises:
        ValueError: `num_samples` is less than 2; f cannot be differentiated in z.

    Source: Titsias & Shi (2022), *Double control variates for gradient estimation in discrete latent variable models*,
    https://arxiv.org/abs/2111.05300, for Bernoullis. The form for categoricals follows from it.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Independent
        >>> _ = torch.manual_seed(0)
        >>> logits = torch.zeros(1, 3, requires_grad=True)
        >>> loss = DoubleCV(alpha=-1.0)(Independent(Bernoulli(logits=logits), 1), lambda b: b.sum(-1))
        >>> loss.mean().backward()
        >>> logits.grad  # exact: f is linear
        tensor([[0.2500, 0.2500, 0.2500]])
    """

    families: ClassVar[tuple[type[Distribution], ...]] = (Bernoulli, OneHotCategorical)
    gradient_of_f: ClassVar[Literal["none", "samples", "relaxed"]] = "samples"
    min_samples: ClassVar[int] = 2
    learns_variance: ClassVar[bool] = True
    needs_independent_samples: ClassVar[bool] = True

    def __init__(self, alpha: float = 0.0, learn_alpha: bool = True, num_samples: int = 2) -> None:  # noqa: FBT001
        super().__init__(num_samples)
        check_finite(self, alpha=alpha)
        self.alpha = nn.Parameter(torch.tensor(float(alpha)), requires_grad=learn_alpha)

    def is_unbiased(self, q: Distribution) -> bool:
        """It always is."""
        return True

    def evaluations(self, q: Distribution) -> tuple[int, int]:
        """Return one evaluation of f and one of its gradient per sample."""
        return self.num_samples, self.num_samples

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Combine the leave-one-out estimate and that of the linear model, whose mean is known."""
        z = sample(q)
        value, slope = value_and_gradient(self, f, z)
        with torch.no_grad():
            centred = score(q, z)
            others = (slope.sum(0) - slope) / (self.num_samples - 1)
            event = tuple(range(-len(q.event_shape), 0))
            model = (centred * others).sum(event) if event else centred * others
            of_costs = self._leave_one_out(value, centred)
            of_model = self._leave_one_out(model, centred) - times_covariance(q, slope).mean(0)
        gradient = torch.addcmul(of_costs, self.alpha, of_model)
        surrogate_loss = None
        if self.learns():
            surrogate_loss = gradient.square().reshape(*q.batch_shape[1:], q.event_shape.numel()).sum(-1)
        return Estimate(value, gradients_of_parameters(q, leaves, gradient), surrogate_loss)

    def extra_repr(self) -> str:
        """Show the settings, α as it is now."""
        return f"alpha={self.alpha.item():.4g}, learn_alpha={self.alpha.requires_grad}, {super().extra_repr()}"

    def diagnostics(self) -> dict[str, Tensor]:
        """Return `alpha`."""
        return {**super().diagnostics(), "alpha": self.alpha.detach().clone()}

    def _leave_one_out(self, costs: Tensor, score: Tensor) -> Tensor:
        """Return the mean of the scores, each weighted by its cost less the mean of the others."""
        signal = (costs - costs.mean(0)) / (self.num_samples - 1)
        return (signal.reshape(*signal.shape, *(1,) * (score.ndim - signal.ndim)) * score).sum(0)
