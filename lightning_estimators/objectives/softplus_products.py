r"""How a sum of softplus changes, as products: loops for a compiler to fuse.

Every change is $\sum_p \log(1 + q_p)$ with q as small as the move. Factors are multiplied as
$Q \leftarrow Q (1 + q) + q$, which keeps the digits of small q, and one logarithm is taken for up to 16 of them.
Outputs p are laid out as `(m, n, 16)`: products run over n, whose size is compiled in; 16 is what processors take at
once. What is filled up with zeros has q = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_estimators.objectives.compilation import compiled_or_none
from lightning_estimators.objectives.softplus_change import SoftplusAt

__all__ = ["class_products", "flip_products", "move_products", "product_reach"]

_LANES = 16
_LONGEST = 16
_LARGEST = 80.0  # e^80 is finite in float32


def product_reach(length: int) -> float:
    """Return the largest move for which products of that many factors are finite: factors are below 1 + e^|w| / 2."""
    return _LARGEST / length + math.log(2) - 0.1


def flip_products(a: Tensor, columns: Tensor, negative: Tensor, reach: float) -> Tensor | None:
    r"""Return $\sum_p \text{softplus}(a_p + w_p) - \text{softplus}(a_p) - 1[a_p > 0] w_p$ for w plus or minus a column.

    Args:
        a: Pre-activations, shape `(L, P)`.
        columns: Shape `(D, P)`.
        negative: Whether the move is minus the column, shape `(L, D)`.
        reach: The largest entry of columns in size; at most `product_reach(8)`.

    Returns:
        Tensor of shape `(L, D)`, or None where there is no compiler.
    """
    group = _grouping(a.shape[1], reach)
    arguments = (*_tails(a, group), _tables(columns, group), negative)
    return compiled_or_none(_flips, arguments, ((0, 1), (0, 1), (1, 2), (0, 1)))


def class_products(a: Tensor, columns: Tensor, current: Tensor, reach: float) -> Tensor | None:
    r"""Return $\sum_p \text{softplus}(a_p + w_p) - \text{softplus}(a_p) - 1[a_p > 0] w_p$: w a column less the current.

    Args:
        a: Pre-activations, shape `(L, P)`.
        columns: Shape `(J, K, P)`; centred, since exponentials are taken of columns and not of their differences.
        current: The current class of each variable, shape `(L, J)`.
        reach: The largest difference between entries of columns of one variable; at most `product_reach(8)`.

    Returns:
        Tensor of shape `(L, J, K)`, or None where there is no compiler.
    """
    group = _grouping(a.shape[1], reach)
    arguments = (*_tails(a, group), _tables(columns, group), current)
    return compiled_or_none(_classes, arguments, ((0, 1), (0, 1), (1, 2, 3), (0, 1)))


def move_products(a: Tensor, scale: Tensor, moves: Tensor) -> Tensor | None:
    r"""Return $\sum_p \text{softplus}(a_p + w_p) - \text{softplus}(a_p)$ for any w, scale times moves.

    Args:
        a: Pre-activations, shape `(L, P)`.
        scale: Shape `(L, J)`, or `(1, 1)`.
        moves: Shape `(L, J, P)`, or `(1, J, P)`.

    Returns:
        Tensor of shape `(L, J)`, or None where there is no compiler.
    """
    group = _grouping(a.shape[1], 0.0)
    at = SoftplusAt(_grouped(a, group))
    of_a = (at.sign, at.shift, at.crossing, at.tail, at.below, at.above)
    return compiled_or_none(_moves, (*of_a, scale, _grouped(moves, group)), (*[(0, 1)] * 7, (0, 1, 2)))


def _grouping(outputs: int, reach: float) -> tuple[int, int]:
    """Return (m, n): few logarithms, little filling up, and finite products."""
    longest = _LONGEST if reach <= product_reach(_LONGEST) else _LONGEST // 2
    # A logarithm takes about as long as five factors.
    ways = ((math.ceil(outputs / (_LANES * n)), n) for n in range(1, longest + 1))
    return min(ways, key=lambda way: way[0] * (way[1] + 5))


def _grouped(x: Tensor, group: tuple[int, int]) -> Tensor:
    """Return x with its last axis filled up with zeros and laid out as `(m, n, 16)`."""
    m, n = group
    filled = x.new_zeros(*x.shape[:-1], m * n * _LANES)
    filled[..., : x.shape[-1]] = x
    return filled.reshape(*x.shape[:-1], m, n, _LANES)


def _tails(a: Tensor, group: tuple[int, int]) -> Tensor:
    """Return sigma(-|a|) where a <= 0 and where a > 0, zero elsewhere: of each pair one is zero."""
    filled = a.new_zeros(2, len(a), math.prod(group) * _LANES)
    below, above = filled[..., : a.shape[1]]
    tail = torch.sigmoid(-a.abs())
    torch.sub(tail, torch.mul(tail, a > 0, out=above), out=below)
    return filled.reshape(2, len(a), *group, _LANES)


def _tables(columns: Tensor, group: tuple[int, int]) -> Tensor:
    """Return e^w - 1 and e^-w - 1 of all columns."""
    tables = columns.new_empty(2, *columns.shape[:-1], math.prod(group) * _LANES)
    up, down = tables
    up[..., columns.shape[-1] :] = 0
    up[..., : columns.shape[-1]] = columns
    torch.neg(up, out=down)
    return tables.expm1_().reshape(*tables.shape[:-1], *group, _LANES)


def _flips(below: Tensor, above: Tensor, tables: Tensor, negative: Tensor) -> Tensor:
    sign, j = negative.long(), torch.arange(tables.shape[1], device=tables.device)
    move, mirrored = tables[sign, j], tables[1 - sign, j]

    def q(i: int) -> Tensor:
        return below[:, None, :, i] * move[:, :, :, i] + above[:, None, :, i] * mirrored[:, :, :, i]

    return _summed_logs(q, below.shape[-2])


def _classes(below: Tensor, above: Tensor, tables: Tensor, current: Tensor) -> Tensor:
    j = torch.arange(tables.shape[1], device=tables.device)
    up, down = tables[0], tables[1]
    up_here, down_here = up[j, current][:, :, None], down[j, current][:, :, None]

    def q(i: int) -> Tensor:
        # e^(new - current) - 1 as (e^new - e^current) e^-current.
        move = (up[..., i, :] - up_here[..., i, :]) * (1 + down_here[..., i, :])
        mirrored = (down[..., i, :] - down_here[..., i, :]) * (1 + up_here[..., i, :])
        return below[:, None, None, :, i] * move + above[:, None, None, :, i] * mirrored

    return _summed_logs(q, below.shape[-2])


def _moves(
    sign: Tensor,
    shift: Tensor,
    crossing: Tensor,
    tail: Tensor,
    below: Tensor,
    above: Tensor,
    scale: Tensor,
    moves: Tensor,
) -> Tensor:
    def w(i: int) -> Tensor:
        return scale[:, :, None, None] * moves[:, :, :, i]

    def q(i: int) -> Tensor:  # see `SoftplusAt`
        nearer = shift[:, None, :, i] + sign[:, None, :, i] * w(i)
        return tail[:, None, :, i] * torch.minimum(nearer, crossing[:, None, :, i] - nearer).expm1()

    def relu(i: int) -> Tensor:
        return torch.maximum(w(i) + below[:, None, :, i], above[:, None, :, i])

    steps = relu(0)
    for i in range(1, sign.shape[-2]):
        steps = steps + relu(i)
    return _summed_logs(q, sign.shape[-2]) + steps.sum((-2, -1))


def _summed_logs(q: Callable[[int], Tensor], length: int) -> Tensor:
    product = q(0)
    for i in range(1, length):
        factor = q(i)
        product = product * (1 + factor) + factor
    return product.log1p().sum((-2, -1))
