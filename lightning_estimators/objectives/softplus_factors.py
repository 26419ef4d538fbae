r"""How a sum of softplus functions changes, as logarithms of products of factors: loops for a compiler to fuse.

The change is $\sum_p \log[\sigma(-a_p) + \sigma(a_p) e^{w_p}]$. Exponentials are taken of columns of W, once for all
points, and a factor takes two multiplications and one addition. All terms are positive, so the sum is exact to rounding
relative to 1 for a and w of any size. Where changes are much smaller than 1, use `softplus_series` or
`softplus_products`, which round relative to the change.

Outputs p are laid out as `(m, n, 16)`: 16 is what a processor computes at once, products run over n, and one logarithm
is taken of each. m is the smallest power of 2 for which products are finite.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_estimators.objectives.compilation import compiled_or_none

__all__ = ["class_factors", "flip_factors"]

_LANES = 16
_LARGEST = 80.0  # e^80 is finite in float32, and e^-80 is no denormal number
_MOST_RUNS = 32


def flip_factors(a: Tensor, columns: Tensor, negative: Tensor) -> Tensor | None:
    r"""Return $\sum_p \text{softplus}(a_p + w_p) - \text{softplus}(a_p)$ for w plus or minus a column.

    One exponential of a column serves both signs:
    $\sigma(-a) + \sigma(a) e^{-w} = [\sigma(a) + \sigma(-a) e^w] e^{-w}$.

    Args:
        a: Pre-activations, shape `(L, P)`.
        columns: Columns of W, shape `(D, P)`.
        negative: Whether the move is minus the column, shape `(L, D)`.

    Returns:
        Tensor of shape `(L, D)`, or None if weights are too large or compiling fails.
    """
    laid_out = _in_runs(columns, columns.abs())
    if laid_out is None:
        return None
    table, group = laid_out
    arguments = (_shares(a, group), table.exp_(), negative)
    products = compiled_or_none(_flips, arguments, ((1, 2, 3), (0, 1, 2), (0, 1)))
    return None if products is None else products.sub_(negative * columns.sum(-1))


def class_factors(a: Tensor, columns: Tensor, current: Tensor) -> Tensor | None:
    r"""Return $\sum_p \text{softplus}(a_p + w_p) - \text{softplus}(a_p)$ for w a column less the current one.

    Args:
        a: Pre-activations, shape `(L, P)`.
        columns: Columns of W, shape `(J, K, P)`, less the middle of their K entries, so that exponentials are finite.
        current: The current class of each variable, shape `(L, J)`.

    Returns:
        Tensor of shape `(L, J, K)`, or None if weights are too large or compiling fails.
    """
    laid_out = _in_runs(columns, (columns.amax(1) - columns.amin(1))[:, None])
    if laid_out is None:
        return None
    table, group = laid_out
    table.exp_()
    arguments = (_shares(a, group), table, table.reciprocal(), current)
    return compiled_or_none(_classes, arguments, ((1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3), (0, 1)))


def _in_runs(columns: Tensor, sizes: Tensor) -> tuple[Tensor, tuple[int, int]] | None:
    """Return a copy of columns, filled up with zeros to shape `(..., m, n, 16)`, and (m, n); None if no m will do.

    Args:
        columns: Shape `(..., P)`.
        sizes: Factors are within e^(+-sizes); broadcastable to columns.
    """
    outputs = columns.shape[-1]
    rows = math.ceil(outputs / _LANES)
    m = 1
    while m <= min(rows, _MOST_RUNS):
        n = math.ceil(rows / m)
        filling = (0, m * n * _LANES - outputs)
        padded = F.pad(sizes, filling)
        if padded.reshape(*sizes.shape[:-1], m, n, _LANES).sum(-2).max() <= _LARGEST:
            return F.pad(columns, filling).contiguous().reshape(*columns.shape[:-1], m, n, _LANES), (m, n)
        m *= 2
    return None


def _shares(a: Tensor, group: tuple[int, int]) -> Tensor:
    """Return sigma(-a) and sigma(a), shape `(2, L, m, n, 16)`, filled up such that the factors are 1 there."""
    outputs = a.shape[1]
    shares = a.new_empty(2, len(a), math.prod(group) * _LANES)
    shares[0, :, outputs:], shares[1, :, outputs:] = 1, 0
    shares[0, :, :outputs], shares[1, :, :outputs] = torch.sigmoid(-a), torch.sigmoid(a)
    return shares.reshape(2, len(a), *group, _LANES)


def _flips(shares: Tensor, table: Tensor, negative: Tensor) -> Tensor:
    sign, i = negative.long(), torch.arange(shares.shape[1], device=shares.device)[:, None]
    return (shares[sign, i] + shares[1 - sign, i] * table).prod(-2).log().sum((-2, -1))


def _classes(shares: Tensor, table: Tensor, reciprocals: Tensor, current: Tensor) -> Tensor:
    j = torch.arange(table.shape[0], device=table.device)
    left = shares[1][:, None] * reciprocals[j, current]
    return (shares[0][:, None, None] + left[:, :, None] * table).prod(-2).log().sum((-2, -1))
