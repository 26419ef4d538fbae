"""The straight-through estimator: the sample forward, the probabilities backward."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from lightning_estimators.distributions import probabilities
from lightning_estimators.estimators.straight_through_estimator import StraightThroughEstimator

__all__ = ["StraightThrough"]


class StraightThrough(StraightThroughEstimator):
    r"""Evaluates f at the sample and backpropagates as if that were the probabilities: biased.

    Bernoulli: $\hat g_l = p (1 - p) f'(b)$; categorical: $\hat g_l = \operatorname{diag}(\pi) f'(z) - \pi \pi^T f'(z)$.
    Exact where f is linear in z. It is what `OneHotCategoricalStraightThrough.rsample` of torch does, and discrete
    world models. There is no temperature: the straight-through form of the Gumbel-softmax, which has one, is
    `Concrete(straight_through=True)`. `ReinMax` has the same cost and less bias.

    Requirements: an f that is differentiable in z. Cost: one evaluation of f and of its gradient per sample.

    Args:
        num_samples: Samples per batch element.
        coupling: How these depend on one another; see `GradientEstimator`.

    Raises:
        ValueError: f cannot be differentiated in z.

    Source: Bengio, Léonard & Courville (2013), *Estimating or propagating gradients through stochastic neurons for
    conditional computation*, https://arxiv.org/abs/1308.3432. World models: Hafner et al. (2021), *Mastering Atari with
    discrete world models*, algorithm 1, https://arxiv.org/abs/2010.02193.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Independent
        >>> _ = torch.manual_seed(0)
        >>> logits = torch.zeros(1, 3, requires_grad=True)
        >>> loss = StraightThrough()(Independent(Bernoulli(logits=logits), 1), lambda b: b.sum(-1))
        >>> loss.mean().backward()
        >>> loss.item(), logits.grad  # f is linear, so the gradient is exact
        (2.0, tensor([[0.2500, 0.2500, 0.2500]]))
    """

    def stand_in(self, q: Distribution, z: Tensor) -> Tensor:
        """Return the probabilities."""
        return probabilities(q)
