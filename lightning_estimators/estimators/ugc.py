"""Unbiased gradient variance clipping: DisARM, but flips of single coordinates where probabilities are near 0 or 1."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution

from lightning_estimators.distributions import exact_logits
from lightning_estimators.estimators.base import GradientEstimator
from lightning_estimators.estimators.estimate import Estimate
from lightning_estimators.estimators.relaxation import gradients_of_parameters
from lightning_estimators.noise import CommonNoise, uniform
from lightning_estimators.objectives import Objective

__all__ = ["UGC"]


class UGC(GradientEstimator):
    r"""Estimates the gradient in the logits by DisARM or by flips of one coordinate, whichever varies less; unbiased.

    A coordinate of which the less probable outcome has a probability m above the threshold τ gets that of `DisARM`,
    $\frac12 [f(b) - f(\tilde b)]\, (b - \tilde b)\, (1 - m)$. Of the M others one, j, is drawn evenly and gets that of
    bitflip-1, $M\, p_j (1 - p_j)\, (1 - 2 b_j)\, [f(b \text{ with } b_j \text{ flipped}) - f(b)]$; the rest gets 0.
    The variance of DisARM is of the order of m, that of the flips of the order of M m²: it pays where nearly all
    coordinates are all but decided. Where some are not, `ARMS` with three samples costs as much and varies less.

    Requirements: Bernoulli variables; nothing of f. Cost: three evaluations of f per sample: at the sample, at its
    antithetic partner and with one coordinate flipped; two where the threshold leaves one of these unused.

    Args:
        threshold: τ, between 0 (DisARM alone) and ½ (bitflip-1 alone, in all coordinates); by default 1 / (2 D), with D
            the number of coordinates.
        num_samples: Samples per batch element.

    Raises:
        ValueError: The threshold is not between 0 and ½.

    Source: Kunes, Yin, Land, Haviv, Pe'er & Tavaré (2023), *Gradient estimation for binary latent variables via
    gradient variance clipping*, https://arxiv.org/abs/2208.06124. The coordinate is drawn among the M that use it, not
    among all D, which leaves M / D of the variance.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Independent
        >>> _ = torch.manual_seed(0)
        >>> logits = torch.tensor([0.0, 5.0]).repeat(10000, 1).requires_grad_()
        >>> loss = UGC()(Independent(Bernoulli(logits=logits), 1), lambda b: b.sum(-1).square())
        >>> loss.sum().backward()
        >>> [round(g, 2) for g in logits.grad.mean(0).tolist()]  # the exact gradient is 0.747, 0.013
        [0.75, 0.01]
    """

    families: ClassVar[tuple[type[Distribution], ...]] = (Bernoulli,)
    needs_independent_samples: ClassVar[bool] = True

    def __init__(self, threshold: float | None = None, num_samples: int = 1) -> None:
        super().__init__(num_samples)
        if threshold is not None and not 0 <= threshold <= 0.5:
            raise ValueError(f"UGC needs a threshold between 0 and 0.5, a probability, got {threshold!r}.")
        self.threshold = threshold

    def is_unbiased(self, q: Distribution) -> bool:
        """It always is."""
        return True

    def evaluations(self, q: Distribution) -> tuple[int, int]:
        """Return one evaluation of f per sample, and one for its partner and its flip each, if they are used."""
        threshold = self._threshold(q)
        return self.num_samples * (1 + int(threshold < 0.5) + int(threshold > 0)), 0

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Evaluate f at a sample, its partner and its flip, under the same noise inside f."""
        logits, threshold = exact_logits(q).detach(), self._threshold(q)
        rarer, likelier_is_1 = torch.sigmoid(-logits.abs()), logits > 0
        u = uniform(q.batch_shape, q.event_shape, dtype=logits.dtype, device=logits.device)
        b = (u < rarer).logical_xor(likelier_is_1).to(logits.dtype)
        partner = (1 - u < rarer).logical_xor(likelier_is_1).to(logits.dtype)
        clipped = rarer <= threshold
        chosen = _one_of(clipped, q)
        points = [partner] if threshold < 0.5 else []
        points += [(b - chosen).abs()] if threshold > 0 else []
        noise = CommonNoise(b.device)
        value = f(b)
        with torch.no_grad(), noise.replay(new_axis=len(q.batch_shape)):
            changes = f(torch.stack(points)) - value
        changes = changes.reshape(changes.shape + (1,) * len(q.event_shape))
        gradient = torch.zeros_like(b)
        if threshold < 0.5:
            gradient = torch.where(clipped, gradient, 0.5 * changes[0] * (partner - b) * (1 - rarer))
        if threshold > 0:
            gradient = gradient + _count(clipped, q) * chosen * rarer * (1 - rarer) * (1 - 2 * b) * changes[-1]
        return Estimate(value, gradients_of_parameters(q, leaves, gradient))

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"threshold={self.threshold}, {super().extra_repr()}"

    def _threshold(self, q: Distribution) -> float:
        return 1 / (2 * max(q.event_shape.numel(), 1)) if self.threshold is None else self.threshold


def _count(clipped: Tensor, q: Distribution) -> Tensor:
    """Return how many coordinates of the event are clipped, with axes of length 1 in place of those of the event."""
    flat = clipped.reshape(*q.batch_shape, q.event_shape.numel())
    return flat.sum(-1).reshape(*q.batch_shape, *(1 for _ in q.event_shape))


def _one_of(clipped: Tensor, q: Distribution) -> Tensor:
    """Return 1 at one of the clipped coordinates, drawn evenly, and 0 elsewhere; 0 everywhere if there is none."""
    flat = clipped.reshape(*q.batch_shape, q.event_shape.numel())
    rank = flat.cumsum(-1)
    dtype = exact_logits(q).dtype
    u = uniform(q.batch_shape, (1,), dtype=dtype, device=clipped.device)
    count = flat.sum(-1, keepdim=True)
    drawn = 1 + (u * count).long().clamp_max(count - 1).clamp_min(0)
    return (flat & (rank == drawn)).reshape(clipped.shape).to(dtype)
