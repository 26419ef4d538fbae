"""Systematic sampling: a fixed number of draws among many, each as often in the mean as its size says."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["systematic_draws"]


def systematic_draws(sizes: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
    r"""Draw M of N entries by M equidistant points on the line along which sizes are laid end to end.

    Point t lies at $(t + u_t) / M$ of the line's length and draws the entry on whose stretch it falls. If every $u_t$
    alone is uniform on (0, 1), entry i is drawn $M\, \text{size}_i / \sum_j \text{size}_j$ times in the mean, however
    the shifts depend on one another. Points that share one shift keep their distance, so an entry that is as long as
    this distance is drawn exactly once.

    What is returned as expected count is that of the law that is drawn from, sums rounded as they are. Where all sizes
    are zero, or too small to be told from zero beside the others, it is 0, and a draw means nothing.

    Args:
        sizes: Not negative, shape `(rows, N)`, N at least 1.
        shifts: $u_t$, shape `(rows, M)`.

    Returns:
        Indices of the drawn entries, shape `(rows, M)`, and how often each of them is drawn in the mean, of that shape.

    Source: Madow (1949), *On the theory of systematic sampling, II*, https://doi.org/10.1214/aoms/1177729988.

    Example:
        >>> sizes, shifts = torch.tensor([[1.0, 0.0, 2.0, 1.0]]), torch.full((1, 2), 0.75)
        >>> index, expected = systematic_draws(sizes, shifts)
        >>> index, expected
        (tensor([[2, 3]]), tensor([[1.0000, 0.5000]]))
    """
    draws = shifts.shape[-1]
    # In float64, so that small stretches keep their digits beside the sum of all.
    ends = sizes.double().cumsum(-1)
    total = ends[:, -1:]
    places = (torch.arange(draws, device=sizes.device) + shifts.double()) * (total / draws)
    index = torch.searchsorted(ends, places.contiguous(), right=True).clamp_max_(sizes.shape[-1] - 1)
    starts = torch.where(index > 0, ends.gather(-1, (index - 1).clamp_min(0)), 0.0)
    expected = (ends.gather(-1, index) - starts) * draws / total
    return index, torch.where(total > 0, expected, 0.0).to(sizes.dtype)
