"""One layout for scalar and for one-hot coordinates, so that objectives compute changes of both by the same code."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Coordinates", "are_one_hot"]


@dataclass(frozen=True)
class Coordinates:
    """The coordinates of z and the alternatives to which they change, with flattened axes.

    Scalar coordinates are treated as vectors with one entry that have one alternative.

    Attributes:
        z: Shape `(L, J, K)`: L points, J coordinates, and K entries of each (1 for scalars).
        z_new: Shape `(A, L, J, K)`: A alternatives for each coordinate.
        lead: The shape of z before the event axes, whose sizes multiply to L.
        coords: The shape of the event without the category axis, whose sizes multiply to J.
        one_hot: Whether the last event axis is a category axis.
    """

    z: Tensor
    z_new: Tensor
    lead: torch.Size
    coords: torch.Size
    one_hot: bool

    @classmethod
    def of(cls, z: Tensor, z_new: Tensor, event_dim: int) -> Coordinates:
        """Flatten the arguments of `Objective.coordinate_change`.

        Raises:
            ValueError: The shapes fit neither scalar nor one-hot coordinates.
        """
        lead, event = z.shape[: z.ndim - event_dim], z.shape[z.ndim - event_dim :]
        one_hot = z_new.ndim == z.ndim + 1
        if z.ndim < event_dim or (one_hot and event_dim == 0) or z_new.shape[int(one_hot) :] != z.shape:
            raise ValueError(
                f"coordinate_change with event_dim={event_dim} expects z_new of the shape of z (scalar coordinates) or "
                f"(alternatives,) + the shape of z (one-hot coordinates, category axis last), got z of shape "
                f"{tuple(z.shape)} and z_new of shape {tuple(z_new.shape)}."
            )
        coords = event[:-1] if one_hot else event
        categories = event[-1] if one_hot else 1
        alternatives = z_new.shape[0] if one_hot else 1
        flat = (lead.numel(), coords.numel(), categories)
        return cls(z.reshape(flat), z_new.to(z.dtype).reshape(alternatives, *flat), lead, coords, one_hot)

    def directions(self, direction: Tensor | None) -> Tensor:
        """Return the directions of `Objective.coordinate_slope` in the layout of `z_new`; ones for scalars.

        Raises:
            ValueError: Directions are missing for vector coordinates, or given for scalar ones.
        """
        if (direction is None) == self.one_hot:
            raise ValueError(
                "coordinate_slope takes a direction for vector coordinates and none for scalars; got "
                f"{'none' if direction is None else tuple(direction.shape)} for {self.z.shape[-1]} entries each."
            )
        if direction is None:
            return torch.ones_like(self.z_new)
        return direction.expand(len(self.z_new), *self.lead, *self.coords, self.z.shape[-1]).reshape(self.z_new.shape)

    def are_classes(self) -> bool:
        """Whether coordinates are one-hot vectors, of which at least half of all categories are alternatives."""
        wanted = self.one_hot and 2 * len(self.z_new) >= self.z.shape[-1]
        return wanted and are_one_hot(self.z) and are_one_hot(self.z_new)

    def unflatten(self, change: Tensor) -> Tensor:
        """Reshape changes of shape `(A, L, J)` to the shape that `Objective.coordinate_change` returns."""
        shape = (*self.lead, *self.coords)
        return change.reshape((len(change), *shape) if self.one_hot else shape)


def are_one_hot(z: Tensor) -> bool:
    """Whether all vectors along the last axis are one-hot."""
    return bool((z.square() == z).all() and (z.sum(-1) == 1).all())
