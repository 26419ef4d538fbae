"""The linear layer that objectives with structure begin with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["check_linear", "linear"]


def linear(z: Tensor, weight: Tensor, bias: Tensor | None, event_dim: int) -> Tensor:
    """Return W z + c, z flattened over its event axes and cast to the dtype of W."""
    lead = z.shape[: z.ndim - event_dim]
    entries = z.shape[z.ndim - event_dim :].numel()
    if entries != weight.shape[1]:
        raise ValueError(
            f"expected z with an event of {weight.shape[1]} entries, as many as the columns of weight, got {entries}: "
            f"z has shape {tuple(z.shape)}, of which the last {event_dim} axes are the event."
        )
    return F.linear(z.reshape(*lead, entries).to(weight.dtype), weight, bias)


def check_linear(name: str, weight: Tensor, bias: Tensor | None) -> None:
    """Raise unless weight and bias are those of a linear layer."""
    if weight.ndim < 1 or (bias is not None and bias.shape != weight.shape[:1]):
        raise ValueError(
            f"{name} expected weight of shape (outputs, inputs) and bias of shape (outputs,), got "
            f"{tuple(weight.shape)} and {None if bias is None else tuple(bias.shape)}."
        )
