"""A distribution with all its mass on one point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

__all__ = ["Delta"]


class Delta(Distribution):
    """All mass on one point, to use a deterministic layer where a distribution is expected.

    Args:
        value: The point, of shape batch_shape; wrap the distribution in `Independent` for an event.
        validate_args: As for any distribution of torch.

    Example:
        >>> import torch
        >>> Delta(torch.ones(2)).rsample((3,)).shape
        torch.Size([3, 2])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"value": constraints.real}
    support = constraints.real
    has_rsample = True

    def __init__(self, value: Tensor, validate_args: bool | None = None) -> None:  # noqa: FBT001
        self.value = value
        super().__init__(value.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The point."""
        return self.value

    @property
    def variance(self) -> Tensor:
        """Zero."""
        return torch.zeros_like(self.value)

    def expand(self, batch_shape: Sequence[int], _instance: Distribution | None = None) -> Delta:
        """Return the same distribution with more batch axes."""
        return Delta(self.value.expand(batch_shape), validate_args=False)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return the point, attached to the graph."""
        return self.value.expand(*sample_shape, *self.value.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return 0 at the point and minus infinity elsewhere: the density with respect to the point mass itself."""
        return torch.where(value == self.value, 0.0, -torch.inf).to(self.value.dtype)

    def entropy(self) -> Tensor:
        """Return 0."""
        return torch.zeros_like(self.value)
