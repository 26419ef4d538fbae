"""Attach to a value gradients that were computed beforehand, and the loss of an estimator's own parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_estimators.noise import is_replaying
from lightning_estimators.objectives.derivatives import NotTwiceDifferentiableError

__all__ = ["attach_gradients", "attach_surrogate_loss", "once_differentiable_parameter"]


def attach_gradients(value: Tensor, gradients: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Return the value such that backward also sends each given gradient to its parameter.

    The value keeps the gradients that it already has.

    Args:
        value: A tensor of any shape.
        gradients: One for each parameter: the derivative of each entry of the value, as numbers, of the shape of the
            parameter, which begins with the shape of the value.
        parameters: Tensors that require grad.
    """
    attached: Tensor = _AttachGradients.apply(value, *gradients, *parameters)
    return attached


def attach_surrogate_loss(value: Tensor, surrogate_loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return the value, unchanged, such that backward also trains the parameters on the surrogate loss.

    Each entry of the surrogate loss is weighted by the absolute value of what backward brings to that entry of the
    value, so the loss goes down whether the user minimises or maximises the value.

    Args:
        value: A tensor of any shape.
        surrogate_loss: Of the same shape; its graph is differentiated when backward runs.
        parameters: The surrogate parameters to train, which require grad.
    """
    zeros: Tensor = _SurrogateLoss.apply(_HiddenFromAutograd(surrogate_loss), *parameters)
    return value + zeros.to(value.dtype)


class _AttachGradients(torch.autograd.Function):
    """Identity on the value; sends `upstream * gradient` to each parameter. Inputs: value, gradients, parameters."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *tensors: Tensor) -> Tensor:
        half = len(tensors) // 2
        ctx.save_for_backward(*tensors[:half])
        ctx.parameters = tensors[half:]  # not saved: an optimizer may change them before backward
        ctx.is_inside = is_replaying()  # of a control variate, which takes the gradient for a number on purpose
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        sent = [
            (gradient * upstream.reshape(upstream.shape + (1,) * (gradient.ndim - upstream.ndim))).to(parameter.dtype)
            for gradient, parameter in zip(gradients, ctx.parameters, strict=True)
        ]
        if torch.is_grad_enabled() and not ctx.is_inside:
            sent = [s + _NoSecondDerivative.apply(p) for s, p in zip(sent, ctx.parameters, strict=True)]
        return (upstream, *(None for _ in gradients), *sent)


def once_differentiable_parameter(parameter: Tensor) -> Tensor:
    """Return the parameter such that gradients pass through it, and refuse to be differentiated again.

    For pathwise gradients whose derivatives are numbers, such as implicit ones.
    """
    through: Tensor = _OnceDifferentiable.apply(parameter)
    return through


class _OnceDifferentiable(torch.autograd.Function):
    """Identity, whose gradient has no gradient; inside a control variate it may be taken for a number on purpose."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor) -> Tensor:
        ctx.parameter, ctx.is_inside = parameter, is_replaying()
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not ctx.is_inside:
            upstream = upstream + _NoSecondDerivative.apply(ctx.parameter)
        return upstream


class _NoSecondDerivative(torch.autograd.Function):
    """Zero; refuses to be differentiated. Added to a gradient that is an estimate, whose derivative is not zero."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor) -> Tensor:
        return parameter.new_zeros(())

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor | None:
        raise NotTwiceDifferentiableError(
            "a second derivative was asked for in a parameter of q (create_graph=True, or a Hessian), but the first is "
            "an estimate that consists of numbers: the second would lack terms. Use Enumeration, which is exact and "
            "can be differentiated any number of times, or Pathwise where q has an explicit rsample."
        )


@dataclass
class _HiddenFromAutograd:
    """Holds a tensor where autograd does not see it: `_SurrogateLoss` differentiates it itself."""

    tensor: Tensor


class _SurrogateLoss(torch.autograd.Function):
    """Zero in value; its gradient is that of the surrogate loss, with the sign of the upstream gradient ignored.

    Differentiating when backward runs, and not before, weights every batch element by its own upstream gradient.
    A node of its own, so that gradients asked of anything else (a relaxed sample, say) never pay for it.
    """

    @staticmethod
    def forward(ctx: Any, hidden: _HiddenFromAutograd, *parameters: Tensor) -> Tensor:
        ctx.loss = hidden.tensor
        ctx.save_for_backward(*parameters)
        return torch.zeros_like(hidden.tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = torch.autograd.grad(
            ctx.loss,
            ctx.saved_tensors,
            upstream.abs().to(ctx.loss.dtype),
            retain_graph=True,  # the user may call backward twice; the graph goes when the loss goes
            allow_unused=True,
            materialize_grads=True,
        )
        return (None, *gradients)
