r"""How a sum of softplus functions changes, for `torch.compile`: functions that it turns into one fast loop each.

Every change is written as $\sum_p \log(1 + q_p)$, where q is about as small as the move. The factors 1 + q are
multiplied by updating $Q \leftarrow Q (1 + q) + q$, where 1 + Q is the product so far, so that small q keep their
digits; one logarithm is taken for up to 16 factors. The outputs p are laid out as a tensor of shape `(m, n, 16)`:
products are taken along n, whose size is a constant of the compiled program, and 16 numbers fill the vector registers
of a processor. The last outputs are filled up with zeros, for which q = 0 and the factor is 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_estimators.objectives.compilation import compiled_or_none
from lightning_estimators.objectives.softplus_change import SoftplusAt

__all__ = ["class_products", "flip_products", "move_products", "product_reach"]

_LANES = 16  # numbers that a processor works on at once
_LONGEST = 16  # most factors of a product
_LARGEST = 80.0  # e^80 is finite in float32


def product_reach(length: int) -> float:
    """Return the largest |w| for which a product of `length` factors, each below 1 + e^|w| / 2, is finite."""
    return _LARGEST / length + math.log(2) - 0.1


def flip_products(a: Tensor, columns: Tensor, negative: Tensor, reach: float) -> Tensor | None:
    r"""Return $\sum_p \text{softplus}(a_p + w_p) - \text{softplus}(a_p) - 1[a_p > 0] w_p$ for moves w of bits.

    The move of a bit is plus or minus a column of W.

    Args:
        a: Pre-activations, shape `(L, P)`.
        columns: The columns of W, shape `(D, P)`.
        negative: Whether the move is minus the column, shape `(L, D)`.
        reach: The largest absolute value in `columns`; at most `product_reach(8)`.

    Returns:
        Tensor of shape `(L, D)`, or None if compiling fails.
    """
    group = _grouping(a.shape[1], reach)
    arguments = (*_tails(a, group), _tables(columns, group), negative)
    return compiled_or_none(_flips, arguments, ((0, 1), (0, 1), (1, 2), (0, 1)))


def class_products(a: Tensor, columns: Tensor, current: Tensor, reach: float) -> Tensor | None:
    r"""Return $\sum_p \text{softplus}(a_p + w_p) - \text{softplus}(a_p) - 1[a_p > 0] w_p$ for changes of class.

    The move w of a variable is the column of the new class minus that of the current one.

    Args:
        a: Pre-activations, shape `(L, P)`.
        columns: The columns of W for each variable and class, shape `(J, K, P)`, with their middle subtracted: their
            exponentials are taken, which must not overflow.
        current: The current class of each variable, shape `(L, J)`.
        reach: The largest difference between entries of columns of one variable; at most `product_reach(8)`.

    Returns:
        Tensor of shape `(L, J, K)`, or None if compiling fails.
    """
    group = _grouping(a.shape[1], reach)
    arguments = (*_tails(a, group), _tables(columns, group), current)
    return compiled_or_none(_classes, arguments, ((0, 1), (0, 1), (1, 2, 3), (0, 1)))


def move_products(a: Tensor, scale: Tensor, moves: Tensor) -> Tensor | None:
    r"""Return $\sum_p \text{softplus}(a_p + w_p) - \text{softplus}(a_p)$ for moves w = scale · moves of any size.

    Args:
        a: Pre-activations, shape `(L, P)`.
        scale: Shape `(L, J)` or `(1, 1)`.
        moves: Shape `(L, J, P)` or `(1, J, P)`.

    Returns:
        Tensor of shape `(L, J)`, or None if compiling fails.
    """
    group = _grouping(a.shape[1], 0.0)
    at = SoftplusAt(_grouped(a, group))
    of_a = (at.sign, at.shift, at.crossing, at.tail, at.below, at.above)
    return compiled_or_none(_moves, (*of_a, scale, _grouped(moves, group)), (*[(0, 1)] * 7, (0, 1, 2)))


def _grouping(outputs: int, reach: float) -> tuple[int, int]:
    """Return the sizes (m, n) of the layout: the fastest of those with finite products.

    Few logarithms and few zeros make it fast.
    """
    longest = _LONGEST if reach <= product_reach(_LONGEST) else _LONGEST // 2
    # A logarithm takes about as long as multiplying five factors.
    ways = ((math.ceil(outputs / (_LANES * n)), n) for n in range(1, longest + 1))
    return min(ways, key=lambda way: way[0] * (way[1] + 5))


def _grouped(x: Tensor, group: tuple[int, int]) -> Tensor:
    """Fill the last axis of x up with zeros and reshape it to `(m, n, 16)`."""
    m, n = group
    filled = x.new_zeros(*x.shape[:-1], m * n * _LANES)
    filled[..., : x.shape[-1]] = x
    return filled.reshape(*x.shape[:-1], m, n, _LANES)


def _tails(a: Tensor, group: tuple[int, int]) -> Tensor:
    """Return two tensors: sigma(-|a|) where a <= 0 and zero elsewhere, and sigma(-|a|) where a > 0 and zero elsewhere.

    With them q is computed without a branch.
    """
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
        # e^(new - current) - 1 is computed as (e^new - e^current) e^-current.
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

    def q(i: int) -> Tensor:  # the formula is that of `SoftplusAt`
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
