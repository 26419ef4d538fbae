"""Derivatives of the logistic function, of any order."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

__all__ = ["sigmoid_derivative"]


def sigmoid_derivative(a: Tensor, order: int) -> Tensor:
    """Return the derivative of the given order, at least 1, of the logistic function.

    It is computed as a polynomial in the logistic function itself.
    """
    s = torch.sigmoid(-a.abs())  # at most 1/2, which keeps all digits in both tails; they are symmetric
    out = torch.zeros_like(s)
    for c in reversed(_sigmoid_polynomial(order)):
        out = out * s + c
    out = out * s * (1 - s)
    return out if order % 2 else torch.where(a < 0, out, -out)


@cache
def _sigmoid_polynomial(order: int) -> tuple[int, ...]:
    """Return the coefficients of the polynomial q_n in sigma^(n) = sigma' q_n(sigma).

    They follow from q_1 = 1 and q_{n+1}(s) = (1 - 2s) q_n(s) + s(1 - s) q_n'(s).
    """
    if order == 1:
        return (1,)
    q = _sigmoid_polynomial(order - 1)
    out = [0] * (len(q) + 1)
    for power, c in enumerate(q):
        out[power] += c * (1 + power)
        out[power + 1] -= c * (2 + power)
    return tuple(out)
