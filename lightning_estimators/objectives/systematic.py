"""Systematic sampling: drawing a fixed number of entries with probabilities proportional to their sizes."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["systematic_draws"]


def systematic_draws(sizes: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
    r"""Draw M of N entries, entry i on average $M\, \text{size}_i / \sum_j \text{size}_j$ times.

    Imagine the entries as intervals, as long as their sizes, laid end to end on a line. Point t = 0, ..., M - 1 lies at
    the fraction $(t + u_t) / M$ of the line, and draws the entry in whose interval it falls. If every shift $u_t$ is
    uniform on (0, 1), the average numbers are as stated, however the shifts depend on one another. If all points of a
    row have the same shift, they are equally spaced, and an entry that is as long as this spacing is drawn exactly
    once.

    Args:
        sizes: Not negative, shape `(rows, N)` with N at least 1.
        shifts: $u_t$, shape `(rows, M)`.

    Returns:
        The indices of the drawn entries, and how often each of them is drawn on average, both of shape `(rows, M)`. The
        averages include the rounding of the sums by which entries are found, so they are exact for what is drawn. An
        average is 0 if all sizes of the row are 0, or where an entry's size is lost to rounding beside the others; such
        a draw is to be ignored.

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
