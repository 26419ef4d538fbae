"""Derivatives of the logistic function, of any order."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

__all__ = ["sigmoid_derivative"]


def sigmoid_derivative(a: Tensor, order: int) -> Tensor:
    """Return the derivative of the logistic function of the given order, at least 1, as a polynomial in it."""
    s = torch.sigmoid(-a.abs())  # below 1/2: accurate in the tails, which mirror each other
    out = torch.zeros_like(s)
    for c in reversed(_sigmoid_polynomial(order)):
        out = out * s + c
    out = out * s * (1 - s)
    return out if order % 2 else torch.where(a < 0, out, -out)


@cache
def _sigmoid_polynomial(order: int) -> tuple[int, ...]:
    """Coefficients of q_n in sigma^(n) = sigma' q_n(sigma): q_1 = 1, q_{n+1} = (1 - 2s) q_n + s(1 - s) q_n'."""
    if order == 1:
        return (1,)
    q = _sigmoid_polynomial(order - 1)
    out = [0] * (len(q) + 1)
    for power, c in enumerate(q):
        out[power] += c * (1 + power)
        out[power + 1] -= c * (2 + power)
    return tuple(out)
