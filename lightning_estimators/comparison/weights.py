"""The weights of what is compared on, which no candidate may change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Weights"]


class Weights:
    """Parameters and their `.grad`, as they are now.

    Args:
        named: Parameters, or other tensors, with names for messages.
    """

    def __init__(self, named: Sequence[tuple[str, Tensor]]) -> None:
        self._kept = [
            (name, p, p.detach().clone(), p.requires_grad, p.grad, None if p.grad is None else p.grad.detach().clone())
            for name, p in named
            if p.is_leaf
        ]

    @torch.no_grad()
    def restore(self) -> list[str]:
        """Put back what has been changed; return what that was."""
        changed = []
        for name, parameter, value, requires_grad, grad, grad_value in self._kept:
            if not _same(parameter.detach(), value):
                parameter.copy_(value)
                changed.append(name)
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
                changed.append(f"{name}.requires_grad")
            moved = parameter.grad is not grad
            if grad is not None and grad_value is not None and not _same(grad.detach(), grad_value):
                grad.detach().copy_(grad_value)
                moved = True
            if moved:
                parameter.grad = grad
                changed.append(f"{name}.grad")
        return changed


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, where NaN is the same as NaN."""
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())
