"""The distribution that goes with each kind of action."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from lightning_estimators.policies.actions import ActionDistribution
from lightning_estimators.policies.binary import BinaryActions
from lightning_estimators.policies.discrete import DiscreteActions
from lightning_estimators.policies.gaussian import GaussianActions
from lightning_estimators.rollout import ActionKind

__all__ = ["action_distribution"]


def action_distribution(kind: ActionKind, sizes: Sequence[int]) -> ActionDistribution:
    """Return the distribution over actions of one kind.

    Args:
        kind: See `rollout.ActionKind`.
        sizes: See there.

    Raises:
        ValueError: There is no such kind, or it takes another number of sizes.

    Example:
        >>> action_distribution("box", [2])
        GaussianActions(size=2, initial_scale=1.0)
    """
    if kind not in get_args(ActionKind):
        raise ValueError(f"the kind of actions must be one of {', '.join(get_args(ActionKind))}, got {kind!r}.")
    if kind == "multi_discrete":
        return DiscreteActions(sizes)
    if len(sizes) != 1:
        raise ValueError(f"actions of kind {kind!r} have one size, got {list(sizes)}.")
    if kind == "discrete":
        return DiscreteActions(sizes, is_scalar=True)
    return BinaryActions(sizes[0]) if kind == "multi_binary" else GaussianActions(sizes[0])
