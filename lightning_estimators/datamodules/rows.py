"""Batches of tensors held in memory: tabular data with labels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_estimators.datamodules.indexed import IndexedBatches

__all__ = ["Rows"]


class Rows(IndexedBatches[tuple[Tensor, ...]]):
    """Loads batches of the rows of one or more tensors, such as features and labels.

    On order, shards and resuming see `IndexedBatches`. A batch is a tuple with one tensor for each of `tensors`, of
    shape `(batch, *tensor.shape[1:])` and of the same dtype.

    Args:
        tensors: Tensors of the same length, with rows along the first axis.
        batch_size: Rows in a batch of this rank; the last batch may be smaller.
        shuffle: Whether to put the rows in a new order in each epoch.
        seed: Seed of the order.
        pad: Whether to repeat rows so that all ranks have the same number.
        rank: Index of this rank's shard.
        world_size: Number of shards into which the rows are divided.
        limit: How much of an epoch is used before the next one begins: Lightning's `limit_train_batches`.

    Raises:
        ValueError: If there are no rows, if the tensors differ in length, or a number is out of range.

    Example:
        >>> import torch
        >>> [tuple(y.tolist()) for _, y in Rows([torch.zeros(5, 2), torch.arange(5)], batch_size=2)]
        [(0, 1), (2, 3), (4,)]
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        pad: bool = False,
        rank: int = 0,
        world_size: int = 1,
        limit: int | float = 1.0,
    ) -> None:
        lengths = {len(tensor) for tensor in tensors}
        if len(lengths) != 1:
            raise ValueError(f"expected tensors of one length, got {[len(tensor) for tensor in tensors]}")
        super().__init__(
            lengths.pop(),
            batch_size,
            shuffle=shuffle,
            seed=seed,
            pad=pad,
            rank=rank,
            world_size=world_size,
            limit=limit,
        )
        self.tensors = tuple(tensors)

    def _take(self, indices: Tensor, epoch: int, index: int) -> tuple[Tensor, ...]:
        return tuple(tensor[indices] for tensor in self.tensors)
