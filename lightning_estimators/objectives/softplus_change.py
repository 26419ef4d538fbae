r"""How a sum of softplus functions changes: $\sum_p \text{softplus}(a_p + w_p) - \text{softplus}(a_p)$.

It is computed without subtracting almost equal numbers, so that small changes keep their digits.

- `SoftplusAt` works for any moves w, by elementwise arithmetic on all of them.
- `class_changes` is for categorical variables, whose moves are differences of two columns: it takes the exponentials
  of the columns instead of those of all differences.
- `summed_log1p` is what they have in common: one logarithm for many factors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["MAX_SPREAD", "SoftplusAt", "class_changes", "summed_log1p"]

# e^80 is finite in float32, and 1 + e^-80 is 1 in float64.
_SATURATED = 80.0

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
