"""MuProp: the first-order Taylor expansion of the cost at the mean, as control variate."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor
from torch.distributions import Bernoulli, Distribution, OneHotCategorical

from lightning_estimators.distributions import probabilities, sample
from lightning_estimators.estimators.cost_gradient import value_and_gradient
from lightning_estimators.estimators.estimate import Estimate
from lightning_estimators.estimators.reinforce import REINFORCE
from lightning_estimators.estimators.relaxation import gradients_of_parameters, times_covariance
from lightning_estimators.noise import CommonNoise
from lightning_estimators.objectives import Objective

__all__ = ["MuProp"]


class MuProp(REINFORCE):
    r"""Estimates the gradient in the logits with the cost linearised at the mean μ as control variate; unbiased.

    $\hat g = [f(b) - f(\mu) - f'(\mu)^T (b - \mu) - c]\, (b - \mu) + \Sigma f'(\mu)$, where μ holds the probabilities
    and Σ is the covariance of b, so that $\Sigma f'(\mu)$ is the exact gradient of the linear part: μ (1 − μ) f'(μ)
    for Bernoulli variables, $\mu \odot (f'(\mu) - \mu^T f'(\mu))$ for one-hot categorical ones. The baseline c is
    that of `REINFORCE`, for what the expansion leaves of the cost: where f is curved, its mean is not 0.

    Requirements: an f that is differentiable at the mean, between the values of b. Cost: one evaluation of f per
    sample, and one more with its gradient, whatever the number of samples. Unbiased with every baseline but a
    normalized `LearnedBaseline`.

    Of several layers, each expands the cost of its own latents, which contains the estimator of the next, where Gu et
    al. put the mean through all layers.

    Args:
        baseline: What is subtracted from the remainder; by default the moving average of past ones.
        num_samples: Samples per batch element.

    Raises:
        ValueError: f cannot be differentiated at the mean; the baseline needs more samples (`LeaveOneOut`: 2), or a
            context that is not given.

    Source: Gu, Levine, Sutskever & Mnih (2016), *MuProp: unbiased backpropagation for stochastic neural networks*,
    https://arxiv.org/abs/1511.05176.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Independent
        >>> _ = torch.manual_seed(0)
        >>> logits = torch.zeros(2, 3, requires_grad=True)
        >>> loss = MuProp()(Independent(Bernoulli(logits=logits), 1), lambda b: b.sum(-1))
        >>> loss.sum().backward()
        >>> logits.grad[0]  # exact: f is linear
        tensor([0.2500, 0.2500, 0.2500])
    """

    families: ClassVar[tuple[type[Distribution], ...]] = (Bernoulli, OneHotCategorical)
    gradient_of_f: ClassVar[Literal["none", "samples", "relaxed"]] = "relaxed"
    takes_observed_costs: ClassVar[bool] = False

    def evaluations(self, q: Distribution) -> tuple[int, int]:
        """Return one evaluation of f per sample, and one of f and of its gradient at the mean."""
        return self.num_samples + 1, 1

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Weight the score by what the expansion leaves of the cost, and add the gradient of the expansion."""
        b = sample(q)
        noise = CommonNoise(b.device)
        value = f(b)
        if self.num_samples > 1:
            noise = CommonNoise(
                b.device
            )  # new noise: what is drawn next would repeat that of all samples but the first
        mean = probabilities(q).detach()[:1]
        with noise.replay(new_axis=len(q.batch_shape) - 1):  # inside f: estimators there do not learn from the mean
            at_mean, slope = value_and_gradient(self, f, mean)
        centred = b - mean
        linear = (slope * centred).reshape(*value.shape, q.event_shape.numel()).sum(-1)
        signal, loss = self.baseline((value - at_mean).detach() - linear, context)
        score_part = signal.reshape(signal.shape + (1,) * len(q.event_shape)) * centred
        return Estimate(value, gradients_of_parameters(q, leaves, score_part + times_covariance(q, slope)), loss)
