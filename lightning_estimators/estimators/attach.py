"""Gradients that are given as numbers: of a value, and of what an estimator learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["attach", "deposit"]


def attach(value: Tensor, gradients: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Return the value with given numbers as its gradient in each parameter, besides the gradient it has.

    Args:
        value: Any shape.
        gradients: Of each entry of the value, shape of the value and any axes behind it.
        parameters: One for each gradient and of its shape.
    """
    attached: Tensor = _Attach.apply(value, *gradients, *parameters)
    return attached


def deposit(control: Tensor, own: Sequence[Tensor]) -> Tensor:
    """Return zeros of the shape of a control loss, whose gradient in own parameters is that of the control loss.

    The sign of the upstream gradient is ignored.

    Args:
        control: Any shape; its graph is differentiated when backward runs.
        own: What it depends on and is to be learned.
    """
    deposited: Tensor = _Deposit.apply(_Held(control), *own)
    return deposited


class _Attach(torch.autograd.Function):
    """Identity on the value; sends `upstream * gradient` to each parameter. Inputs: value, gradients, parameters."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *tensors: Tensor) -> Tensor:
        half = len(tensors) // 2
        ctx.save_for_backward(*tensors[:half])
        ctx.dtypes = [parameter.dtype for parameter in tensors[half:]]
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        sent = [
            (gradient * upstream.reshape(upstream.shape + (1,) * (gradient.ndim - upstream.ndim))).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return (upstream, *(None for _ in gradients), *sent)


@dataclass
class _Held:
    """Hides a tensor from autograd: the deposit differentiates it itself, with respect to own parameters only."""

    control: Tensor


class _Deposit(torch.autograd.Function):
    """Zero in value; its gradient is that of the control loss, with the sign of the upstream gradient ignored.

    Differentiating when backward runs, and not before, weights every batch element by its own upstream gradient.
    A node of its own, so that gradients asked of anything else (a relaxed sample, say) never pay for it.
    """

    @staticmethod
    def forward(ctx: Any, held: _Held, *own: Tensor) -> Tensor:
        ctx.control = held.control
        ctx.save_for_backward(*own)
        return torch.zeros_like(held.control)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = torch.autograd.grad(
            ctx.control,
            ctx.saved_tensors,
            upstream.abs().to(ctx.control.dtype),
            retain_graph=True,  # the user may call backward twice; the graph goes when the loss goes
            allow_unused=True,
            materialize_grads=True,
        )
        return (None, *gradients)
