"""Mean and variance of gradient estimates, computed while the estimates arrive, without storing them.

This is the package's only implementation of these moments: callbacks, comparisons and the conformance suite use it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["GradientMoments", "GradientStatistics", "flatten"]


@dataclass(frozen=True)
class GradientStatistics:
    """Mean and variance of estimates of one gradient, a vector of many entries, summarised by three numbers.

    Attributes:
        total_variance: Sum of the variances of the entries, 0-d.
        mean_norm: Euclidean norm of the mean gradient, 0-d.
        entries: Number of entries, 0-d.

    Example:
        >>> statistics = GradientStatistics(torch.tensor(8.0), torch.tensor(2.0), torch.tensor(4.0))
        >>> {name: round(float(figure), 3) for name, figure in statistics.figures().items()}
        {'variance': 2.0, 'log_variance': 0.693, 'snr': 0.707}
    """

    total_variance: Tensor
    mean_norm: Tensor
    entries: Tensor

    def figures(self) -> dict[str, Tensor]:
        """Return `variance`, `log_variance` and `snr`, all 0-d.

        `variance` is the variance of an entry, averaged over the entries. `log_variance` is its natural logarithm,
        -inf if the variance is 0. `snr`, the signal-to-noise ratio, is the norm of the mean divided by the square root
        of the total variance; inf if only the variance is 0, and 0 if the mean is 0.
        """
        variance = self.total_variance / self.entries
        snr = torch.where(self.mean_norm > 0, self.mean_norm / self.total_variance.sqrt(), self.mean_norm)
        return {"variance": variance, "log_variance": variance.log(), "snr": snr}


class GradientMoments:
    r"""Mean and variance of independent estimates of several named gradients, in one pass over the estimates.

    For n estimates $g_1, \dots, g_n$ of a gradient, the mean is $\bar g = \frac{1}{n} \sum_k g_k$ and the variance of
    entry i is $\frac{1}{n-1} \sum_k (g_{k,i} - \bar g_i)^2$. Squared deviations from the mean are added up, and not
    squares of the estimates, so no digits are lost where the mean is much larger than the deviations. Numbers are kept
    in the dtype of the estimates, or in float32 if these are in half precision.

    Args:
        per_entry: Whether to keep the variance of every entry. Otherwise only the sum over entries is kept, which
            halves the memory.

    Source: Chan, Golub & LeVeque (1983), *Algorithms for computing the sample variance*, eq. 2.1,
    https://doi.org/10.1080/00031305.1983.10483115.

    Example:
        >>> moments = GradientMoments()
        >>> moments.update({"logits": torch.tensor([[1.0, 2.0], [3.0, 2.0]])})
        >>> moments.update({"logits": torch.tensor([[5.0, 2.0]])})
        >>> moments.mean("logits"), moments.variance("logits")
        (tensor([3., 2.]), tensor([4., 0.]))
    """

    def __init__(self, *, per_entry: bool = True) -> None:
        self.per_entry = per_entry
        self._running: dict[str, tuple[int, Tensor, Tensor]] = {}  # count, mean, sum of squared deviations

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._running)

    def update(self, estimates: Mapping[str, Tensor]) -> None:
        """Include a batch of estimates.

        Args:
            estimates: Estimates of each gradient by its name, of shape `(count,) + gradient_shape`; they are detached.

        Raises:
            ValueError: The shape of a gradient differs from the one before.
        """
        for name, batch in estimates.items():
            batch = batch.detach().to(torch.promote_types(batch.dtype, torch.float32))
            mean = batch.mean(0)
            self._add(name, len(batch), mean, self._squares(batch - mean))

    def merge(self, other: GradientMoments) -> None:
        """Include all estimates that another `GradientMoments` has included.

        Raises:
            ValueError: The shape of a gradient differs, or only one of the two keeps the variance of every entry.
        """
        if self.per_entry != other.per_entry:
            raise ValueError(
                f"expected moments with per_entry={self.per_entry}, got per_entry={other.per_entry}: "
                "build both with the same per_entry."
            )
        for name, (count, mean, squares) in other._running.items():
            self._add(name, count, mean, squares)

    def count(self, name: str) -> int:
        """Return the number of estimates of this gradient."""
        return self._running[name][0]

    def mean(self, name: str) -> Tensor:
        """Return the mean of every entry."""
        return self._running[name][1].clone()

    def variance(self, name: str) -> Tensor:
        """Return the variance of every entry; NaN for fewer than two estimates.

        Raises:
            ValueError: Only the sum over entries is kept.
        """
        if not self.per_entry:
            raise ValueError("the variance of every entry was not kept: build GradientMoments with per_entry=True.")
        return self._divided(name)

    def standard_error(self, name: str) -> Tensor:
        """Return the standard error of every entry of the mean.

        Raises:
            ValueError: Only the sum over entries is kept.
        """
        return (self.variance(name) / self.count(name)).sqrt()

    def statistics(self, name: str) -> GradientStatistics:
        """Return the total variance, the norm of the mean and the number of entries."""
        mean = self._running[name][1]
        return GradientStatistics(self._divided(name).sum(), mean.norm(), mean.new_tensor(mean.numel()))

    def figures(self) -> dict[str, Tensor]:
        """Return the figures of all gradients (see `GradientStatistics.figures`) as `<name>/<figure>`."""
        return {f"{name}/{what}": figure for name in self for what, figure in self.statistics(name).figures().items()}

    def _divided(self, name: str) -> Tensor:
        count, _, squares = self._running[name]
        return squares / (count - 1) if count > 1 else torch.full_like(squares, torch.nan)

    def _squares(self, deviations: Tensor) -> Tensor:
        return deviations.square().sum(0 if self.per_entry else None)

    def _add(self, name: str, count: int, mean: Tensor, squares: Tensor) -> Tensor | None:
        """Include the mean of `count` estimates and their squared deviations from it.

        Returns:
            The addition to the squared deviations that comes from the distance between this mean and the mean so far;
            None for the first estimates.
        """
        if name not in self._running:
            self._running[name] = (count, mean.clone(), squares.clone())
            return None
        before, old_mean, old_squares = self._running[name]
        if mean.shape != old_mean.shape:
            raise ValueError(
                f"expected estimates of {name!r} of shape (count,) + {tuple(old_mean.shape)}, as before, "
                f"got (count,) + {tuple(mean.shape)}."
            )
        total = before + count
        shift = mean - old_mean
        between = self._squares(shift.unsqueeze(0)) * (before * count / total)
        self._running[name] = (total, old_mean + shift * (count / total), old_squares + squares + between)
        return between


def flatten(gradients: Iterable[Tensor]) -> Tensor:
    """Join gradients of any shapes to one vector of at least float32.

    In half precision, small differences between estimates would be lost to rounding.
    """
    return torch.cat([g.detach().reshape(-1).to(torch.promote_types(g.dtype, torch.float32)) for g in gradients])
