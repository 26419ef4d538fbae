"""Data loaders for reinforcement learning, whose batches are collected by the policy when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from lightning_estimators.datamodules.indexed import IndexedBatches
from lightning_estimators.rollout import Episodes, Rollout

__all__ = ["PlayedOnce", "Rollouts"]


class Rollouts(IndexedBatches[Rollout]):
    """Collects each training batch at the moment it is asked for, with the policy as it is then.

    A loader that fetched batches ahead would let an older policy act. Lightning fetches one batch ahead from loaders
    without a length, so this one has a length; and if a second batch is asked for before the policy was trained on the
    first, it raises. `IndexedBatches` says how an interrupted epoch continues.

    Args:
        collect: Returns a batch, given its number over the whole run.
        count: Number of batches in an epoch.
        rank: Index of this process.
        world_size: Number of processes.
        limit: Lightning's `limit_train_batches`.
        batches_begun: Returns how many batches training has begun with, over the whole run.
    """

    def __init__(
        self,
        collect: Callable[[int], Rollout],
        count: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        limit: int | float = 1.0,
        batches_begun: Callable[[], int],
    ) -> None:
        super().__init__(count * world_size, 1, rank=rank, world_size=world_size, limit=limit)
        self.collect = collect
        self.batches_begun = batches_begun
        self._begun = -1  # what `batches_begun` returned when the last batch was collected

    def _take(self, indices: Tensor, epoch: int, index: int) -> Rollout:
        begun = self.batches_begun()
        if begun == self._begun:
            raise RuntimeError(
                "a second batch was asked for before the policy had learned from the first, so that it would be acted "
                "by a policy that is no longer the one in training. Hand the datamodule to the Trainer as it is "
                "(trainer.fit(module, datamodule=data)); loaders that read ahead cannot wrap its own."
            )
        self._begun = begun
        return self.collect(epoch * len(self) + index)

    def _order(self) -> dict[str, Any]:
        return {}  # batches are collected anew, so there is no order that could have changed


class PlayedOnce:
    """Yields a single batch of evaluation episodes, which are played when it is asked for.

    Args:
        play: Plays the episodes and returns them.
    """

    def __init__(self, play: Callable[[], Episodes]) -> None:
        self.play = play

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Episodes]:
        yield self.play()
