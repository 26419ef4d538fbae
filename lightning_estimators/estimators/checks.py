"""What an estimator refuses of its arguments before it computes anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["check_context", "check_no_tangents", "explain_function_transform"]


def check_context(context: Tensor | None, batch_shape: torch.Size) -> None:
    """Raise unless the context is a tensor of features for each element of the batch.

    Raises:
        TypeError: It is no tensor.
        ValueError: Its shape does not broadcast to `batch_shape + (features,)`; one axis alone does not tell whether it
            is that of the batch.
    """
    if context is None:
        return
    if not isinstance(context, Tensor):
        raise TypeError(f"context must be a tensor of features or None, got an object of class {type(context)}.")
    lead = context.shape[:-1]
    fits = context.ndim > min(1, len(batch_shape)) and len(lead) <= len(batch_shape)
    fits = fits and all(a in (1, b) for a, b in zip(reversed(lead), reversed(batch_shape), strict=False))
    if not fits:
        raise ValueError(
            f"context must have the shape batch_shape + (features,) = {tuple(batch_shape)} + (features,), got "
            f"{tuple(context.shape)}. One feature for each element is context.unsqueeze(-1)."
        )


def check_no_tangents(parameters: Iterable[Tensor]) -> None:
    """Raise if a parameter carries a tangent of forward-mode differentiation, which would be lost."""
    unpack: Callable[[Tensor], forward_ad.UnpackedDualTensor] = forward_ad.unpack_dual
    if any(unpack(p).tangent is not None for p in parameters):
        raise RuntimeError(
            "a gradient estimate exists in reverse mode only: the parameters of q carry tangents of forward-mode "
            "differentiation (torch.autograd.forward_ad, torch.func.jvp), which would be lost. Use loss.backward() or "
            "torch.autograd.grad."
        )


def explain_function_transform(error: RuntimeError) -> None:
    """Raise in place of an error that `torch.func.grad`, `vmap` and the like cause, and say what works."""
    message = str(error)
    if any(words in message for words in ("with functorch transforms", "vmap:", "being transformed")):
        raise RuntimeError(
            "gradient estimators cannot be called inside torch.func.grad, vmap, jvp or jacrev, which do not see "
            "gradients that are sent by hand. Use loss.backward() or torch.autograd.grad, and batch axes of q in place "
            f"of vmap. ({message.splitlines()[0]})"
        ) from error
