"""What a policy may do in an environment: kinds and sizes of actions, masks, and the way into gymnasium."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lightning_estimators.rollout import ActionKind

if TYPE_CHECKING:
    from gymnasium import Space

__all__ = ["Actions"]


class Actions:
    """The actions of one of gymnasium's fundamental action spaces.

    Args:
        space: Of a single environment: Discrete, MultiDiscrete, MultiBinary or Box of real numbers.

    Attributes:
        kind: See `rollout.ActionKind`.
        sizes: See there.

    Raises:
        TypeError: The space is another.
    """

    def __init__(self, space: Space[Any]) -> None:
        from gymnasium import spaces

        self.kind: ActionKind
        self._shape: tuple[int, ...] = space.shape or ()
        self._dtype: Any = space.dtype
        self._start: Any = 0
        self._bounds: tuple[Any, Any] | None = None
        if isinstance(space, spaces.Discrete):
            self.kind, self.sizes, self._start = "discrete", [int(space.n)], space.start
        elif isinstance(space, spaces.MultiDiscrete):
            self.kind, self.sizes, self._start = "multi_discrete", [int(n) for n in space.nvec.flat], space.start
        elif isinstance(space, spaces.MultiBinary):
            self.kind, self.sizes = "multi_binary", [math.prod(self._shape)]
        elif isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
            self.kind, self.sizes = "box", [math.prod(self._shape)]
            self._bounds = space.low, space.high
        else:
            raise TypeError(
                f"the environment's action space is {space}; expected Discrete, MultiDiscrete, MultiBinary or a Box of "
                "real numbers. Wrap the environment so that its actions are one of these "
                "(gymnasium.wrappers.TransformAction)."
            )
        self._is_shifted = bool(np.any(self._start))

    def for_environments(self, actions: Tensor) -> Any:
        """Return actions of several environments in the form that gymnasium takes; real numbers are clipped to the box.

        Args:
            actions: In the form of `rollout.ActionKind`, shape `(num_envs, *event)`.
        """
        given: Any = actions.numpy(force=True)
        if given.shape[1:] != self._shape:
            given = given.reshape(len(given), *self._shape)
        if self._bounds is not None:
            given = np.clip(given, *self._bounds)
        elif self._is_shifted:
            given = given + self._start
        return given if given.dtype == self._dtype else given.astype(self._dtype)

    def masks(self, infos: Mapping[str, Any], num_envs: int) -> Tensor | None:
        """Return what is allowed in each environment, shape `(num_envs, sum of sizes)`; None if nothing is said of it.

        Args:
            infos: What a vector environment returned with its observations. A mask has the form in which
                `space.sample(mask)` takes it: one entry for each alternative, for several variables a tuple of such.
            num_envs: Number of environments.

        Raises:
            ValueError: A mask has another size, or allows nothing; or actions of this kind cannot be masked.
        """
        given = infos.get("action_mask")
        if given is None:
            return None
        if self.kind not in ("discrete", "multi_discrete"):
            raise ValueError(
                f"the environment masks its actions (info['action_mask']), which are {self.kind}; expected a Discrete "
                "or MultiDiscrete action space for that. Drop the entry from info, or change the space."
            )
        masks = np.ones((num_envs, sum(self.sizes)), dtype=bool)
        for row in np.flatnonzero(infos["_action_mask"]):
            mask = given[row]
            flat = np.concatenate([np.ravel(part) for part in mask]) if isinstance(mask, tuple) else np.ravel(mask)
            if flat.shape != masks[row].shape:
                raise ValueError(
                    f"info['action_mask'] has {flat.size} entries; expected {masks.shape[1]}, one for each alternative "
                    f"of {self.kind} actions of sizes {self.sizes}."
                )
            masks[row] = flat
        for part in np.split(masks, np.cumsum(self.sizes)[:-1], axis=1):
            if not part.any(axis=1).all():
                raise ValueError("info['action_mask'] allows no action at all; expected at least one that is allowed.")
        return torch.from_numpy(masks)
