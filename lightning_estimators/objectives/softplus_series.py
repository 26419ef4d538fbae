r"""Series for the change of a sum of softplus functions, when each input moves by plus or minus a fixed column of W.

A term of the series is one matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["flip_changes", "series_reach", "series_terms"]

# For moves larger than the first number, a Chebyshev series would need thousands of terms and is never used; the second
# number stands for "too many terms".
_LONGEST_REACH, _MANY_TERMS = 1e4, 2**20


def series_terms(reach: float, dtype: torch.dtype) -> int:
    """Return how many terms `flip_changes` needs for |w| up to `reach`, in the precision of dtype."""
    if not reach < _LONGEST_REACH:  # also true of NaN; other methods then return NaN, which shows what is wrong
        return _MANY_TERMS
    if reach <= _taylor_reach(6, dtype):
        return 4 if reach <= _taylor_reach(4, dtype) else 6
    # softplus has singularities at +-i pi, so the terms of the series fall like e^(-n asinh(pi / reach)): that is the
    # largest Bernstein ellipse without a singularity.
    terms = _digits(dtype) / math.asinh(math.pi / max(reach, 1e-3))
    return max(8, 2 * math.ceil(terms / 2))


def series_reach(terms: int, dtype: torch.dtype) -> float:
    """Return the largest |w| for which `terms` terms of `flip_changes` suffice in the precision of dtype."""
    return math.pi / math.sinh(_digits(dtype) / terms)


def _digits(dtype: torch.dtype) -> float:
    return -math.log(4 * torch.finfo(dtype).eps)


def flip_changes(a: Tensor, x: Tensor, columns: Tensor, reach: float, block: int) -> tuple[Tensor, Tensor]:
    r"""Return $\sum_p \text{softplus}(a_p + δ w_p) - \text{softplus}(a_p) - x_p δ w_p$ for δ = -1, 0 and 1.

    The change is a smooth function of w and is expanded in polynomials of w, whose coefficients depend on a only, so
    the sum over p is one matrix product for each term. Each term is odd or even in w, so the same products serve δ = 1
    and δ = -1. The rounding error is relative to |w|, even for tiny w and for saturated a.

    For small w it is the Taylor series, of which the two terms after the last are approximated by polynomials of lower
    degree. Otherwise it is $w \sum_n c_n(a) T_n(w / \text{reach})$ with Chebyshev polynomials $T_n$, whose coefficients
    are found from the change divided by w at Chebyshev nodes.

    Args:
        a: Pre-activations, shape `(L, P)`.
        x: Targets, shape `(L, P)`.
        columns: Moves w, shape `(D, P)`.
        reach: The largest |w|.
        block: How many elements to work on at a time.

    Returns:
        Two tensors of shape `(L, D)`; the change is δ times the first plus δ² times the second.

    Source: Trefethen (2013), *Approximation theory and approximation practice*, theorem 8.2,
    https://people.maths.ox.ac.uk/trefethen/ATAP/.
    """
    terms = series_terms(reach, a.dtype)
    series: Sequence[Tensor] | Tensor = (
        _taylor_coefficients(a, x, reach, terms) if terms <= 6 else _chebyshev_coefficients(a, x, reach, terms, block)
    )
    odd, even = a.new_zeros(len(a), len(columns)), a.new_zeros(len(a), len(columns))
    step = max(1, block // a.shape[1])
    for start in range(0, len(columns), step):
        w = columns[start : start + step].contiguous()
        powers = _powers(w) if terms <= 6 else _chebyshev_polynomials(w, reach)
        for n, (coefficients, power) in enumerate(zip(series, powers, strict=False)):
            part = odd if n % 2 == 0 else even
            part[:, start : start + step].addmm_(coefficients, power.T)
    return odd, even


def _powers(w: Tensor) -> Iterator[Tensor]:
    """Yield w, w² and so on."""
    power = w
    while True:
        yield power
        power = power * w


def _chebyshev_polynomials(w: Tensor, reach: float) -> Iterator[Tensor]:
    """Yield w T_0(w / reach), w T_1(w / reach) and so on."""
    twice = w * (2 / reach)
    before, now = w, w * twice / 2
    while True:
        yield before
        before, now = now, (twice * now).sub_(before)


def _taylor_coefficients(a: Tensor, x: Tensor, reach: float, terms: int) -> list[Tensor]:
    r"""Return what w, w², ... are multiplied by; of 4 or 6 terms.

    The derivatives of the logistic function s are polynomials in v = s (1 - s), times u = 1 - 2s where n is even. On
    [-r, r] the next two terms of the series of the change divided by w, in w^4 and w^5 or in w^6 and w^7, are nearest
    to polynomials that are two degrees lower (Chebyshev economization).
    """
    tail = torch.sigmoid(-a.abs())  # small wherever a is saturated, and accurate
    positive = (a > 0).to(a.dtype)
    sign = 1 - 2 * positive
    v, r2 = tail * (1 - tail), reach * reach
    vu = v * (1 - 2 * tail) * sign
    c5, c6 = vu * (1 - 12 * v) / 120, v * (1 - 30 * v * (1 - 4 * v)) / 720
    c1 = (positive - x) + sign * tail  # σ(a) - x
    c2, c3, c4 = v / 2, vu / 6, v * (1 - 6 * v) / 24
    if terms == 4:
        # w^4 by r² w² - r^4 / 8, and w^5 by 5/4 r² w³ - 5/16 r^4 w.
        c1.sub_(c5, alpha=r2**2 / 8)
        c2.sub_(c6, alpha=5 / 16 * r2**2)
        return [c1, c2, c3.add_(c5, alpha=r2), c4.add_(c6, alpha=1.25 * r2)]
    c7 = vu * (1 - 60 * v * (1 - 6 * v)) / 5040
    c8 = v * (1 - 42 * v * (3 - 40 * v * (1 - 3 * v))) / 40320
    # w^6 by 3/2 r² w^4 - 9/16 r^4 w² + r^6 / 32, and w^7 by 7/4 r² w^5 - 7/8 r^4 w³ + 7/64 r^6 w.
    c1.add_(c7, alpha=r2**3 / 32)
    c2.add_(c8, alpha=7 / 64 * r2**3)
    c3.sub_(c7, alpha=9 / 16 * r2**2)
    c4.sub_(c8, alpha=7 / 8 * r2**2)
    return [c1, c2, c3, c4, c5.add_(c7, alpha=1.5 * r2), c6.add_(c8, alpha=1.75 * r2)]


def _taylor_reach(terms: int, dtype: torch.dtype) -> float:
    """Return the largest |w| for which so many terms of the Taylor series suffice in the precision of dtype."""
    # What economization leaves of the first term after the last, c5 w^4 or c7 w^6 at most, relative to w.
    left_over = {4: 1.07e-3 / 8, 6: 8.2e-5 / 32}[terms]
    largest = 0.6 if terms == 6 else math.inf  # beyond, terms that are left out altogether would count
    return min(largest, float((4 * torch.finfo(dtype).eps / left_over) ** (1 / terms)))


def _chebyshev_coefficients(a: Tensor, x: Tensor, reach: float, terms: int, block: int) -> Tensor:
    """Return what w T_0(w / reach), w T_1(w / reach), ... are multiplied by."""
    points, outputs = a.shape
    order = torch.arange(terms, dtype=torch.float64)
    angle = (order + 0.5) * math.pi / terms
    nodes = reach * angle.cos()  # none is 0, since terms is even
    to_series = 2 / terms * torch.outer(order, angle).cos() / nodes
    to_series[0] /= 2
    to_series, growth = to_series.to(a), torch.expm1(nodes).to(a)[:, None]

    # The series is computed at -|a|, where log(1 + sigma (e^w - 1)) is accurate.
    series = a.new_empty(terms, points * outputs)
    tail = torch.sigmoid(-a.abs()).reshape(-1)
    step = max(1, block // terms)
    for start in range(0, points * outputs, step):
        at_nodes = (growth * tail[start : start + step]).log1p_()
        torch.mm(to_series, at_nodes, out=series[:, start : start + step])
    series = series.reshape(terms, points, outputs)
    # Where a > 0 it follows from softplus(a + w) - softplus(a) = w + softplus(-a - w) - softplus(-a).
    positive = (a > 0).to(a.dtype)
    series[::2] *= 1 - 2 * positive
    series[0] += positive - x
    return series
