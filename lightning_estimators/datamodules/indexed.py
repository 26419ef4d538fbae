"""The order of in-memory batches: shuffled by epoch, sharded over ranks, resumed in the middle of an epoch."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["IndexedBatches", "seeded_generator"]

T = TypeVar("T")

# Purposes of random numbers. Generators are seeded by the seed and the purpose, so that purposes never share noise.
ORDER, PIXELS, STATIC, SPLIT = range(4)


def seeded_generator(*key: int) -> torch.Generator:
    """Return the generator of a key of non-negative integers; torch's global one is neither read nor advanced."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


class IndexedBatches(ABC, Generic[T]):
    """Loads whole batches of examples held in memory, by index and without workers.

    What a batch holds depends only on the seed, the epoch, the index of the batch in the epoch, and the rank. No other
    use of random numbers changes it, and an epoch that is resumed in the middle continues exactly as it would have.

    Sharding is done here, since Lightning injects samplers only into `torch.utils.data.DataLoader`. `batch_size` is
    that of one rank, as usual. Together the i-th batches of all ranks hold the examples that would be in the i-th batch
    of a single process with `world_size` times the batch size.

    - `pad=True` (training): all ranks yield the same number of batches, of the same sizes, so that averages over ranks
      are averages over examples. No example is dropped; up to `world_size - 1` are loaded twice in an epoch.
    - `pad=False` (validation, test): every example is yielded exactly once, by one of the ranks. The ranks still yield
      the same number of batches: one with fewer examples makes its last batches smaller (only with a batch size of 1
      may it yield one batch fewer).

    Resuming follows Lightning's protocol: `state_dict()` names the batch that comes next, and Lightning saves it after
    training on the current batch (it does not fetch batches ahead, since the length is known). After `load_state_dict`
    the next iteration starts there. Lightning calls `sampler.set_epoch(epoch)` at the start of each epoch; in a plain
    loop the epoch advances by itself each time the loader is exhausted.

    Implementing one: implement `_take`, and draw anything random in it from `seeded_generator`.

    Args:
        count: Number of examples.
        batch_size: Examples in a batch of this rank; the last batch may be smaller.
        shuffle: Whether to put the examples in a new order in each epoch.
        seed: Seed of the order.
        pad: Whether to repeat examples so that all ranks have the same number.
        rank: Index of this rank's shard.
        world_size: Number of shards into which the examples are divided.
        limit: How much of an epoch is used before the next one begins: Lightning's `limit_train_batches`, a number of
            batches (int) or a fraction (float). The loader does not stop there; it uses the limit to recognise that a
            state saved there was saved at the end of an epoch.

    Raises:
        ValueError: If there are no examples, or a number is out of range.
    """

    batch_sampler = None
    """Always None: Lightning looks for a batch sampler, and there is none."""

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        pad: bool = False,
        rank: int = 0,
        world_size: int = 1,
        limit: int | float = 1.0,
    ) -> None:
        if count == 0:
            raise ValueError("there are no examples to make batches of")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..world_size - 1, got rank={rank}, world_size={world_size}")
        self.count = count
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.pad = pad
        self.rank = rank
        self.world_size = world_size
        self.limit = limit
        self.epoch = 0
        self._next = 0  # index of the batch that comes next
        self._resuming = False  # whether a state was loaded and nothing yielded since
        self._shift = 0  # self.epoch minus the epoch that the caller of set_epoch counts

    @abstractmethod
    def _take(self, indices: Tensor, epoch: int, index: int) -> T:
        """Return a batch.

        Args:
            indices: Indices of its examples.
            epoch: Number of epochs before this one.
            index: Number of batches before it in the epoch.
        """

    @property
    def sampler(self) -> IndexedBatches[T]:
        """The loader itself: Lightning calls `set_epoch` on a loader's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is.

        If a state was loaded since the last iteration, the loader keeps that state's epoch, because Lightning's count
        may be wrong. When training was stopped by `max_steps`, Lightning counts the epoch as done, yet continues it at
        the batch where it stopped; and after a checkpoint of the end of an epoch it counts one epoch too many if
        `max_steps` is set. The loader remembers the difference and corrects later calls by it.

        Args:
            epoch: Number of epochs before that one.
        """
        if self._resuming:
            self._shift = self.epoch - epoch
        elif epoch + self._shift != self.epoch:
            self.epoch = epoch + self._shift
            self._next = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's position and what decides its order: plain numbers, the same on all ranks."""
        return {"epoch": self.epoch, "next": self._next, **self._order()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Start the next iteration where the loader that returned this state would have continued.

        Warns if the state is from a loader with another order.

        Args:
            state_dict: What `state_dict` returned.
        """
        self._resuming = True
        self.epoch, self._next = state_dict["epoch"], state_dict["next"]
        if self._next >= (min(self.limit, len(self)) if isinstance(self.limit, int) else int(self.limit * len(self))):
            self.epoch, self._next = self.epoch + 1, 0
        changed = {
            name: (state_dict.get(name), now) for name, now in self._order().items() if state_dict.get(name) != now
        }
        if changed and self._next > 0:
            told = ", ".join(f"{name} was {was} and is {now}" for name, (was, now) in changed.items())
            warnings.warn(
                f"the rest of this epoch holds other batches than it would have without the interruption: {told}. "
                "Some examples may come twice and some not at all until the next epoch",
                stacklevel=2,
            )

    def __len__(self) -> int:
        """Number of batches of this rank in a whole epoch; a resumed epoch yields only those that are left."""
        largest_share = -(-self.count // self.world_size)
        return min(-(-largest_share // self.batch_size), self._share())

    def __iter__(self) -> Iterator[T]:
        # Being a generator, this runs only from the first `next` on. It must: Lightning makes the iterator before it
        # loads the state and calls `set_epoch`.
        start = self._next if self._resuming else 0
        self._resuming = False
        epoch = self.epoch
        indices = self._indices(epoch)
        for index in range(start, len(self)):
            self._next = index + 1
            yield self._take(indices[self._bound(index) : self._bound(index + 1)], epoch, index)
        if self.epoch == epoch:
            self.epoch, self._next = epoch + 1, 0

    def _order(self) -> dict[str, Any]:
        """Return the settings that decide which examples are in which batch."""
        return {
            "examples": self.count,
            "batch_size": self.batch_size,
            "world_size": self.world_size,
            "shuffle": self.shuffle,
            "seed": self.seed,
        }

    def _share(self) -> int:
        """Return the number of examples of this rank."""
        count = self.count + (self.world_size - 1 if self.pad else self.world_size - 1 - self.rank)
        return count // self.world_size

    def _indices(self, epoch: int) -> Tensor:
        """Return the indices of this rank's examples, in the order of this epoch."""
        count = self.count
        if self.shuffle:
            order = torch.randperm(count, generator=seeded_generator(self.seed, ORDER, epoch))
        else:
            order = torch.arange(count)
        # Beyond the last example (when padding) the order starts over.
        return order[(self.rank + self.world_size * torch.arange(self._share())) % count]

    def _bound(self, index: int) -> int:
        """Return where a batch starts in this rank's share, leaving at least one example to it and each later batch."""
        return min(index * self.batch_size, self._share() - (len(self) - index))
