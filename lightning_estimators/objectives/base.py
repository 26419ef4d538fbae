"""Costs that know their structure: the two questions that generalized stochastic backpropagation asks of f."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["CallableObjective", "Objective", "as_objective"]


class Objective(ABC):
    """A cost f(z) that can say how it changes with one coordinate.

    Implementing one: `value`; override `coordinate_change` if structure makes it cheaper than evaluating f anew.

    Attributes:
        event_dim: How many of the last axes of z are the event, categories of one-hot variables included.
    """

    event_dim: int = 1

    @abstractmethod
    def value(self, z: Tensor) -> Tensor:
        """Return f(z), shape of z without its event axes, attached to what f depends on."""

    def __call__(self, z: Tensor) -> Tensor:
        """Return f(z) with its shape checked."""
        out = self.value(z)
        expected = z.shape[: z.ndim - self.event_dim]
        if out.shape != expected:
            raise ValueError(
                f"f must map sample_shape + batch_shape + event_shape to sample_shape + batch_shape: "
                f"for z of shape {tuple(z.shape)} expected {tuple(expected)}, got {tuple(out.shape)}."
            )
        return out

    def coordinate_change(self, z: Tensor, z_new: Tensor) -> Tensor:
        """TODO generic chunked."""
        raise NotImplementedError


class CallableObjective(Objective):
    """Any callable."""

    def __init__(self, f: Callable[[Tensor], Tensor], event_dim: int = 1, dtype: torch.dtype | None = None) -> None:
        self.f, self.event_dim, self.dtype = f, event_dim, dtype

    def value(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        return self.f(z if self.dtype is None else z.to(self.dtype))


def as_objective(f: Callable[[Tensor], Tensor], event_dim: int, dtype: torch.dtype | None = None) -> Objective:
    """Return f itself if it is an objective and needs no cast, else f as one."""
    if isinstance(f, Objective) and dtype is None:
        return f
    return CallableObjective(f, event_dim, dtype)
