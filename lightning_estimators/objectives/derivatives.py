"""Derivatives by repeated automatic differentiation, and how costs learn that second ones will be taken of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

__all__ = [
    "NotTwiceDifferentiableError",
    "check_order",
    "differentiated_twice",
    "is_differentiated_twice",
    "repeated_derivative",
]

_twice: ContextVar[bool] = ContextVar("twice", default=False)


class NotTwiceDifferentiableError(ValueError):
    """Raised where second derivatives of f are needed, but f contains a gradient estimator.

    The gradient of such an f is a random estimate, which was computed as a number and cannot be differentiated again.
    """


@contextmanager
def differentiated_twice() -> Iterator[None]:
    """Mark code that evaluates f for derivatives above the first, so that estimators inside f can refuse."""
    token = _twice.set(True)
    try:
        yield
    finally:
        _twice.reset(token)


def is_differentiated_twice() -> bool:
    """Whether f is being evaluated for derivatives above the first."""
    return _twice.get()


def check_order(order: int) -> None:
    """Raise ValueError unless `order` is at least 1."""
    if order < 1:
        raise ValueError(f"the order of a derivative must be at least 1, got {order}.")


def repeated_derivative(value: Tensor, leaf: Tensor, order: int) -> Tensor:
    """Differentiate the sum of `value` with respect to `leaf` `order` times, entry by entry."""
    for n in range(1, order + 1):
        if not value.requires_grad:
            return torch.zeros_like(leaf)
        (value,) = torch.autograd.grad(
            value.sum(), leaf, create_graph=n < order, allow_unused=True, materialize_grads=True
        )
    return value.detach()
