"""The unordered-set estimator: samples without replacement, each weighted by what it stands for."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, OneHotCategorical
from torch.nn.functional import logsigmoid, one_hot

from lightning_estimators.distributions import base_distribution, exact_logits
from lightning_estimators.estimators.base import GradientEstimator
from lightning_estimators.estimators.elsewhere import evaluated_elsewhere
from lightning_estimators.estimators.estimate import Estimate
from lightning_estimators.estimators.relaxation import gradients_of_parameters, score
from lightning_estimators.noise import uniform
from lightning_estimators.objectives import Objective

__all__ = ["UnorderedSet"]

MAX_SAMPLES = 8
"""Above it the sum over all subsets of the samples takes too long."""


class UnorderedSet(GradientEstimator):
    r"""Estimates the gradient from a set S of K different points, drawn without replacement; unbiased.

    $\hat g = \sum_{s \in S} p(s) R(S, s)\, [f(s) - \sum_{s' \in S} p(s') R^s(S, s') f(s')]\, \nabla \log p(s)$. With
    P(S) the probability of drawing the set in any order, the ratio R(S, s) is P(the others | s is drawn first) / P(S),
    and $R^s(S, s')$ is the same where s is taken out from the start, and 1 for s' = s. The weights p R of a set add up
    to 1. The value is the unbiased estimate $\sum_s p(s) R(S, s) f(s)$.

    No point is evaluated twice, so where a few points have most of the probability this varies far less than
    leave-one-out; with all possible points in the set it is exact. Where every point is improbable, as with hundreds of
    latents, it is leave-one-out itself, which is faster.

    Requirements: Bernoulli or one-hot categorical variables; nothing of f. Cost: one evaluation of f per sample; the
    points are drawn one variable after the other, and the ratios are sums over the $2^K$ subsets of S.

    Args:
        num_samples: K, points per batch element, from 2 to 8.

    Raises:
        ValueError: K is out of range.

    Source: Kool, van Hoof & Welling (2020), *Estimating gradients for discrete random variables by sampling without
    replacement*, https://arxiv.org/abs/2002.06043.

    Example:
        >>> import torch
        >>> from torch.distributions import OneHotCategorical
        >>> _ = torch.manual_seed(0)
        >>> logits = torch.zeros(3, requires_grad=True)
        >>> q = OneHotCategorical(logits=logits)
        >>> value = UnorderedSet(num_samples=3)(q, lambda z: z @ torch.tensor([0.0, 0.0, 9.0]))
        >>> value.backward()
        >>> value.detach(), logits.grad.round(decimals=4)  # exact: there are three points
        (tensor(3.), tensor([-1., -1.,  2.]))
    """

    families: ClassVar[tuple[type[Distribution], ...]] = (Bernoulli, OneHotCategorical)
    min_samples: ClassVar[int] = 2
    needs_independent_samples: ClassVar[bool] = True

    def __init__(self, num_samples: int = 4) -> None:
        super().__init__(num_samples)

    def _check_num_samples(self, value: int) -> None:
        super()._check_num_samples(value)
        if value > MAX_SAMPLES:
            raise ValueError(
                f"UnorderedSet sums over all subsets of its samples and takes at most {MAX_SAMPLES}, got {value}."
            )

    def is_unbiased(self, q: Distribution) -> bool:
        """It always is."""
        return True

    def evaluations(self, q: Distribution) -> tuple[int, int]:
        """Return one evaluation of f per sample."""
        return self.num_samples, 0

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Draw the set, and weight its points and what is subtracted from their costs."""
        categories, log_p = _draw_set(_log_probabilities(q), self.num_samples)
        dtype = exact_logits(q).dtype
        if isinstance(base_distribution(q), OneHotCategorical):
            categories = one_hot(categories, q.event_shape[-1])
        z = categories.to(dtype).reshape(*q.batch_shape, *q.event_shape)
        with evaluated_elsewhere(q, f):  # what is drawn without replacement is distributed otherwise
            value = f(z)
        weights, others = (w.to(dtype) for w in set_weights(log_p))
        baseline = (others * value.detach().unsqueeze(0)).sum(1)
        signal = (weights * (value.detach() - baseline)).reshape(*value.shape, *(1 for _ in q.event_shape))
        gradient = (signal * score(q, z)).sum(0)
        return Estimate((weights * value).sum(0), gradients_of_parameters(q, leaves, gradient))


def set_weights(log_p: Tensor) -> tuple[Tensor, Tensor]:
    """Return p(s) R(S, s) for every point of a set, and p(s') R^s(S, s') for every pair of points (s, s').

    Args:
        log_p: Log probabilities of the K points of each set, shape `(K, ...)`; -inf for what stands in for points where
            fewer than K are possible.

    Returns:
        Tensors of shapes `(K, ...)` and `(K, K, ...)`.
    """
    count = len(log_p)
    possible = log_p.isfinite()
    # What is impossible is taken for all but impossible: the last to be drawn, and of no weight.
    log_p = torch.where(possible, log_p, torch.where(possible, log_p, 0.0).amin(0) - 1e4)
    # completed[mask]: log of the probability that the next draws complete the set, the points of the mask being drawn.
    every = (1 << count) - 1
    completed = {every: torch.zeros_like(log_p[0])}
    for mask in reversed(range(every)):
        drawn = [s for s in range(count) if mask >> s & 1]
        rest = [s for s in range(count) if not mask >> s & 1]
        # One minus the probability of what is drawn, which is at least that of the rest of the set, however it rounds.
        remaining = log_p[rest].logsumexp(0)
        if drawn:
            remaining = torch.maximum(remaining, (-torch.expm1(log_p[drawn].logsumexp(0))).clamp_min(0).log())
        else:
            remaining = torch.zeros_like(remaining)
        completed[mask] = torch.stack([log_p[s] + completed[mask | 1 << s] for s in rest]).logsumexp(0) - remaining
    weights = torch.stack([log_p[s] + completed[1 << s] - completed[0] for s in range(count)])
    # For t = s both masks are the same, and the ratio is 1.
    others = [log_p[t] + completed[1 << s | 1 << t] - completed[1 << s] for s in range(count) for t in range(count)]
    return weights.exp(), torch.stack(others).exp().reshape(count, *log_p.shape)


def _log_probabilities(q: Distribution) -> Tensor:
    """Return those of all categories of all variables, without samples, shape `batch_shape + (variables, C)`."""
    logits = exact_logits(q).detach()[0].double()
    if isinstance(base_distribution(q), Bernoulli):
        log_p = torch.stack([logsigmoid(-logits), logsigmoid(logits)], -1)
    else:
        log_p = logits.log_softmax(-1)
    variables = log_p.shape[len(q.batch_shape) - 1 : -1].numel()
    return log_p.reshape(*q.batch_shape[1:], variables, log_p.shape[-1])


def _draw_set(log_probs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Draw points without replacement, variable by variable, and return their categories and log probabilities.

    Every point arrives at an exponential time of the rate of its probability, and the first to arrive are drawn. Of the
    points that share the first variables, one is the first of all, at their common time; those that go on from there by
    another category arrive later, by an exponential time of their own.

    Args:
        log_probs: Shape `batch_shape + (variables, C)`.
        count: K.

    Returns:
        Categories, shape `(K,) + batch_shape + (variables,)`, and log probabilities, shape `(K,) + batch_shape`.
    """
    *batch, variables, classes = log_probs.shape
    dtype, device = log_probs.dtype, log_probs.device
    first = torch.arange(count, device=device) == 0
    log_p = torch.where(first, 0.0, -torch.inf).to(dtype).expand(*batch, count)
    log_time = torch.where(first, -torch.inf, torch.inf).to(dtype).expand(*batch, count)
    steps: list[tuple[Tensor, Tensor]] = []
    for variable in range(variables):
        here = log_probs[..., variable, None, :]
        choice = uniform(batch, (count, 1), dtype=dtype, device=device)
        sums = here.exp().cumsum(-1)
        heir = (choice * sums[..., -1:] >= sums).sum(-1, keepdim=True) == torch.arange(classes, device=device)
        children = log_p.unsqueeze(-1) + here
        delay = (-uniform(batch, (count, classes), dtype=dtype, device=device).log()).log() - children
        times = torch.where(heir, log_time.unsqueeze(-1), torch.logaddexp(log_time.unsqueeze(-1), delay)).flatten(-2)
        log_time, index = times.topk(count, largest=False)
        log_p = children.flatten(-2).gather(-1, index)
        steps.append((index // classes, index % classes))
    categories = torch.empty(count, *batch, variables, dtype=torch.long, device=device)
    possible = log_p.isfinite()
    at = torch.arange(count, device=device).expand(*batch, count)
    at = torch.where(possible, at, possible.long().argmax(-1, keepdim=True))  # a possible point stands in
    for variable in reversed(range(variables)):
        parent, category = steps[variable]
        categories[..., variable] = category.gather(-1, at).movedim(-1, 0)
        at = parent.gather(-1, at)
    return categories, log_p.movedim(-1, 0)
