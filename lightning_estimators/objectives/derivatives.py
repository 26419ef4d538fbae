"""Derivatives by repeated automatic differentiation."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_order", "repeated_derivative"]


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
