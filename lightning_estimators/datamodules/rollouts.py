"""Loaders of what a policy does: training batches and evaluation episodes, made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from lightning_estimators.datamodules.indexed import IndexedBatches
from lightning_estimators.rollout import Episodes, Rollout

__all__ = ["PlayedOnce", "Rollouts"]


class Rollouts(IndexedBatches[Rollout]):
    """Collects each batch when it is asked for, and refuses to be asked ahead.

    It has a length, and no workers: a loader without a length is read one batch ahead by Lightning, whose batches would
    then be acted by the policy from before the last step. Where an interrupted epoch goes on, see `IndexedBatches`.

    Args:
        collect: Returns the batch with a number, counted over the whole run.
        count: Batches in an epoch.
        rank: This process.
        world_size: Number of processes.
        limit: Lightning's `limit_train_batches`.
        batches_begun: Returns on how many batches training has begun, over the whole run.
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
        self._begun = -1  # how many had begun when the last batch was collected

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
        return {}  # batches are new ones whatever else has changed


class PlayedOnce:
    """Yields one batch of episodes, which are played when it is asked for.

    Args:
        play: Plays them.
    """

    def __init__(self, play: Callable[[], Episodes]) -> None:
        self.play = play

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Episodes]:
        yield self.play()
