"""CARMS: any number of categorical samples that differ from one another more often than independent ones do."""

from __future__ import annotations

from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, OneHotCategorical
from torch.nn.functional import one_hot

from lightning_estimators.distributions import probabilities
from lightning_estimators.estimators.base import GradientEstimator
from lightning_estimators.estimators.dirichlet_copula import both_below, uniform_roots
from lightning_estimators.estimators.estimate import Estimate
from lightning_estimators.estimators.relaxation import gradients_of_parameters
from lightning_estimators.noise import uniform
from lightning_estimators.objectives import Objective

__all__ = ["CARMS"]


class CARMS(GradientEstimator):
    r"""Estimates the gradient in the logits from K negatively correlated samples of categorical variables; unbiased.

    $\hat g = \frac{1}{K (K - 1)} \sum_{i < j} w_{ij} [f(z_i) - f(z_j)]\, (z_i - z_j)$: leave-one-out REINFORCE, where
    $w_{ij} = \pi_c \pi_d / P(z_i = c, z_j = d)$ makes up, in each variable by itself, for the correlation of the
    classes c and d that were drawn there. The samples of a variable invert its distribution function at noise that is
    uniform on the simplex, as that of `ARMS`, with the C classes in a random order, the same for all samples: one class
    is the first, another the last, and the others stand between them in cyclic order. So any two classes can occur
    together, and P is the average over the C (C − 1) / 2 orders.

    The weights add a variance of their own. With two samples of ten classes it was more than the correlation saves;
    with more samples, or fewer classes, it was less.

    Requirements: one-hot categorical variables; nothing of f. Cost: one evaluation of f per sample; the probabilities
    of pairs cost of the order of K² C² operations for each variable, in float64.

    Args:
        num_samples: K, samples per batch element, at least 2.

    Source: Dimitriev & Zhou (2021), *CARMS: categorical-antithetic-REINFORCE multi-sample gradient estimator*,
    https://arxiv.org/abs/2110.14002, with inverse-CDF sampling. Noise of negative dependence makes P at least
    $\pi_c \pi_d$ over the number of orders, a bound that holds rounding in check where probabilities are close to 0.

    Example:
        >>> import torch
        >>> from torch.distributions import OneHotCategorical
        >>> _ = torch.manual_seed(0)
        >>> logits = torch.zeros(10000, 3, requires_grad=True)
        >>> loss = CARMS()(OneHotCategorical(logits=logits), lambda z: z @ torch.tensor([0.0, 0.0, 9.0]))
        >>> loss.sum().backward()
        >>> logits.grad.mean(0).round(decimals=1)  # the exact gradient is -1, -1, 2
        tensor([-1., -1.,  2.])
    """

    families: ClassVar[tuple[type[Distribution], ...]] = (OneHotCategorical,)
    min_samples: ClassVar[int] = 2
    needs_independent_samples: ClassVar[bool] = True

    def __init__(self, num_samples: int = 4) -> None:
        super().__init__(num_samples)

    def is_unbiased(self, q: Distribution) -> bool:
        """It always is."""
        return True

    def evaluations(self, q: Distribution) -> tuple[int, int]:
        """Return one evaluation of f per sample."""
        return self.num_samples, 0

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Draw the samples, and weight every pair of them, in every variable, by how likely it was."""
        probs = probabilities(q).detach()[0]
        orders = _Orders(probs)
        classes = orders.draw(q)
        z = one_hot(classes, probs.shape[-1]).to(probs.dtype)
        value = f(z)
        costs = value.detach().reshape(value.shape + (1,) * len(q.event_shape))
        weights = orders.weights(classes)
        gradient = torch.zeros_like(z[0])
        for (i, j), weight in zip(combinations(range(self.num_samples), 2), weights, strict=True):
            gradient += weight.unsqueeze(-1) * (costs[i] - costs[j]) * (z[i] - z[j])
        gradient /= self.num_samples * (self.num_samples - 1)
        return Estimate(value, gradients_of_parameters(q, leaves, gradient))


class _Orders:
    """The orders of the classes of each variable, which samples are drawn in; each by its first and its last class.

    Args:
        probs: Probabilities, shape `batch_shape + variables + (C,)`.
    """

    def __init__(self, probs: Tensor) -> None:
        self.probs, self.count = probs, probs.shape[-1]
        first, last = torch.triu_indices(self.count, self.count, offset=int(self.count > 1), device=probs.device)
        self.first, self.last = first, last

    def draw(self, q: Distribution) -> Tensor:
        """Return the classes of K samples, shape `(K,) + batch_shape + variables`."""
        batch, variables = q.batch_shape, q.event_shape[:-1]
        dtype, device, count = self.probs.dtype, self.probs.device, len(self.first)
        order = (uniform(batch[1:], variables, dtype=dtype, device=device) * count).long().clamp_max(count - 1)
        first, last = self.first[order].unsqueeze(-1), self.last[order].unsqueeze(-1)
        place = torch.arange(self.count - 1, device=self.probs.device)
        between = (first + place + (place >= last - first)) % self.count
        in_order = torch.cat([between, last], -1)
        sums = self.probs.gather(-1, in_order).cumsum(-1)
        u = uniform_roots(batch, variables, dtype=dtype, device=device).pow(batch[0] - 1)
        # As in `distributions.sample`: noise below the sum of the probabilities is in no class of probability 0.
        u = u.clamp_max(1 - torch.finfo(u.dtype).eps / 2).unsqueeze(-1)
        found = (u * sums[..., -1:] >= sums).sum(-1, keepdim=True)
        return in_order.expand(batch[0], *in_order.shape).gather(-1, found).squeeze(-1)

    def weights(self, classes: Tensor) -> list[Tensor]:
        """Return w for every pair of samples, in the order of `combinations`, each of the shape of one sample."""
        probs = self.probs.double()
        probs = probs / probs.sum(-1, keepdim=True)
        power = len(classes) - 1
        lower, upper, drawn = self._intervals(probs, classes)
        lower, upper = lower.pow(1 / power), upper.pow(1 / power)
        found = []
        for i, j in combinations(range(len(classes)), 2):
            joint = (
                both_below(upper[i], upper[j], power)
                - both_below(lower[i], upper[j], power)
                - both_below(upper[i], lower[j], power)
                + both_below(lower[i], lower[j], power)
            ).mean(-1)
            product = drawn[i] * drawn[j]
            found.append((product / torch.maximum(joint, product / len(self.first))).to(self.probs.dtype))
        return found

    def _intervals(self, probs: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return where the noise of the drawn classes begins and ends, order by order, and their probabilities."""
        before = probs.cumsum(-1) - probs  # in the order of the indices
        every = probs.expand(len(classes), *probs.shape)
        drawn = every.gather(-1, classes.unsqueeze(-1))
        index = classes.unsqueeze(-1)
        lower = before.expand(every.shape).gather(-1, index) - before[..., self.first] + (index < self.first)
        moved = (self.last - self.first) % self.count < (index - self.first) % self.count  # the last stood before it
        lower = lower - moved * probs[..., self.last]
        lower = torch.where(index == self.last, 1 - drawn, lower).clamp(0, 1)
        return lower, (lower + drawn).clamp_max(1), drawn.squeeze(-1)
