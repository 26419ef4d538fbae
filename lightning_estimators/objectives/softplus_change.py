r"""How a sum of softplus functions changes: $\sum_p \text{softplus}(a_p + w_p) - \text{softplus}(a_p)$.

It is computed without subtracting almost equal numbers, so that small changes keep their digits.

- `SoftplusAt` works for any moves w, by elementwise arithmetic on all of them.
- `flip_changes` is for binary variables, whose moves are plus or minus a fixed column of W: a few matrix products.
- `class_changes` is for categorical variables, whose moves are differences of two columns: it takes the exponentials
  of the columns instead of those of all differences.
- `summed_log1p` is what they have in common: one logarithm for many factors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "MAX_SPREAD",
    "SoftplusAt",
    "chebyshev_reach",
    "chebyshev_terms",
    "class_changes",
    "flip_changes",
    "summed_log1p",
]

# e^80 is finite in float32, and 1 + e^-80 is 1 in float64.
_SATURATED = 80.0

# For moves larger than the first number, a Chebyshev series would need thousands of terms and is never used; the second
# number stands for "too many terms".
_LONGEST_REACH, _MANY_TERMS = 1e4, 2**20

MAX_SPREAD = _SATURATED / 2
"""The largest difference between columns that `class_changes` takes."""


class SoftplusAt:
    r"""The change of softplus at the points `a`; what does not depend on the moves is computed once for many of them.

    $\text{softplus}(a + w) - \text{softplus}(a) = \text{relu}(a + w) - \text{relu}(a)
    + \log(1 + \sigma(-|a|)(e^{|a| - |a + w|} - 1))$.

    The differences of relu and of absolute values are computed from w directly and not by subtraction, so no digits are
    lost for small w, for large a, or for both. The argument of the logarithm is between 1/2 and 2 for all a and w, so
    many of them can be multiplied before one logarithm is taken.

    Args:
        a: Pre-activations, shape `(L, P)`.
    """

    def __init__(self, a: Tensor) -> None:
        self.below, self.above = a.clamp(max=0), -a.relu()
        size = a.abs()
        clipped = size.clamp(max=_SATURATED)
        # With m = -sign(a), |a| - |a + w| is m w as long as a + w has the sign of a, and 2|a| - m w from there on: the
        # smaller of the two. Where |a| > 80, sigma(-|a|) would underflow; the part of |a| beyond 80 is then moved from
        # the factor sigma(-|a|) into the exponent.
        self.sign, self.shift, self.crossing = -torch.ones_like(a).copysign(a), clipped - size, 2 * clipped
        self.tail = torch.sigmoid(-clipped)

    def summed_change(self, w: Tensor) -> Tensor:
        """Return the change summed over the last axis.

        Args:
            w: The moves, shape `(n, L, P)`; the tensor is overwritten.

        Returns:
            Tensor of shape `(n, L)`.
        """
        nearer = torch.addcmul(self.shift, self.sign, w)
        torch.minimum(nearer, self.crossing - nearer, out=nearer)
        relu = torch.maximum(w.add_(self.below), self.above, out=w).sum(-1)
        return summed_log1p(nearer.expm1_().mul_(self.tail), halvings=4).add_(relu)


def class_changes(a: Tensor, current: Tensor, columns: Tensor, spread: float, block: int) -> Tensor:
    r"""Return $\sum_p \text{softplus}(a_p + w_{kp} - w_{op}) - \text{softplus}(a_p)$ for all classes k.

    o is the current class of a variable. The sum is computed as
    $\sum_p \log(\sigma(-a_p) + \sigma(a_p) e^{-w_{op}} e^{w_{kp}})$. It needs the exponentials of the columns only,
    one product and one sum for each move, and one logarithm for up to 16 of them. The rounding error is relative to
    1 and not to the change, so very small changes lose digits.

    Args:
        a: Pre-activations, shape `(L, P)`.
        current: The current class of each variable, shape `(L, J)`.
        columns: Columns w, shape `(J, K, P)`.
        spread: The largest difference between entries of columns of one variable; at most `MAX_SPREAD`.
        block: How many elements to work on at a time.

    Returns:
        Tensor of shape `(L, J, K)`; 0, up to rounding, for the current class.
    """
    points, outputs = a.shape
    variables, classes, _ = columns.shape
    here, elsewhere = torch.sigmoid(a), torch.sigmoid(-a)[:, None]
    # Every factor is between e^-spread and e^spread. The product of 2^halvings of them must still be finite.
    halvings = min(4, int(math.log2(_SATURATED / max(spread, 1.0))))
    out = a.new_empty(points, variables, classes)
    step = min(max(1, block // (classes * outputs)), max(1, points))
    factors = a.new_empty(step, classes, outputs)
    for j in range(variables):
        # Only differences between columns count. Their middle is subtracted, so that exponentials do not overflow.
        own = columns[j].contiguous()
        centred = own - (own.amax(0) + own.amin(0)) / 2
        grown, shrunk = centred.exp(), centred.neg().exp_()
        for start in range(0, points, step):
            some = slice(start, start + step)
            left = shrunk[current[some, j]].mul_(here[some])[:, None]
            torch.addcmul(elsewhere[some], left, grown, out=factors[: len(left)])
            out[some, j] = _summed_log(factors[: len(left)], halvings)
    return out


def _summed_log(factors: Tensor, halvings: int) -> Tensor:
    """Return the sum of the logarithms over the last axis; overwrites its argument.

    The factors are first multiplied in pairs, `halvings` times, so one logarithm is taken for `2**halvings` of them.
    """
    for _ in range(halvings):
        half = factors.shape[-1] // 2
        if half:
            odd = factors[..., 2 * half :]
            # In place, since allocating new memory for every product would take longer than the product.
            factors = factors[..., :half].mul_(factors[..., half : 2 * half])
            factors[..., : odd.shape[-1]].mul_(odd)
    return factors.contiguous().log_().sum(-1)  # torch's vectorised logarithm needs contiguous memory


def summed_log1p(q: Tensor, halvings: int) -> Tensor:
    """Return the sum of log(1 + q) over the last axis, from products of factors, with all digits of small q.

    Args:
        q: Above -1, contiguous; overwritten. Products of factors 1 + q must be finite.
        halvings: How often one half of the factors is multiplied by the other.
    """
    for _ in range(halvings):
        half = q.shape[-1] // 2
        if half:
            odd, other = q[..., 2 * half :], q[..., half : 2 * half]
            # (1 + q)(1 + r) - 1 = q + q r + r.
            q = q[..., :half]
            q.addcmul_(q, other).add_(other)
            first = q[..., : odd.shape[-1]]
            first.addcmul_(first, odd).add_(odd)
    return q.contiguous().log1p_().sum(-1)


def chebyshev_terms(reach: float, dtype: torch.dtype) -> int:
    """Return how many terms `flip_changes` needs for |w| up to `reach`, in the precision of dtype."""
    if not reach < _LONGEST_REACH:  # also true of NaN; other methods then return NaN, which shows what is wrong
        return _MANY_TERMS
    # softplus has singularities at +-i pi, so the terms of the series fall like e^(-n asinh(pi / reach)): that is the
    # largest Bernstein ellipse without a singularity.
    terms = _digits(dtype) / math.asinh(math.pi / max(reach, 1e-3))
    return max(4, 2 * math.ceil(terms / 2))


def chebyshev_reach(terms: int, dtype: torch.dtype) -> float:
    """Return the largest |w| for which `terms` terms of `flip_changes` suffice in the precision of dtype."""
    return math.pi / math.sinh(_digits(dtype) / terms)


def _digits(dtype: torch.dtype) -> float:
    return -math.log(4 * torch.finfo(dtype).eps)


def flip_changes(a: Tensor, x: Tensor, columns: Tensor, reach: float, block: int) -> tuple[Tensor, Tensor]:
    r"""Return $\sum_p \text{softplus}(a_p + δ w_p) - \text{softplus}(a_p) - x_p δ w_p$ for δ = -1, 0 and 1.

    The change is a smooth function of w and is expanded as $w \sum_n c_n(a) T_n(w / \text{reach})$ in Chebyshev
    polynomials $T_n$. The coefficients depend on a only, so the sum over p is one matrix product for each term. Each
    term is odd or even in w, so the same products serve δ = 1 and δ = -1. The coefficients are found from the change
    divided by w at Chebyshev nodes, so the rounding error is relative to |w|, even for tiny w and for saturated a.

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
    points, outputs = a.shape
    terms = chebyshev_terms(reach, a.dtype)
    reach = max(reach, 1e-20)
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

    odd, even = a.new_zeros(points, len(columns)), a.new_zeros(points, len(columns))
    step = max(1, block // outputs)
    for start in range(0, len(columns), step):
        w = columns[start : start + step].contiguous()
        twice = w * (2 / reach)
        before, now = w, w * twice / 2  # w T_0 and w T_1
        for n in range(terms):
            part = odd if n % 2 == 0 else even
            part[:, start : start + step].addmm_(series[n], before.T)
            before, now = now, (twice * now).sub_(before)
    return odd, even
