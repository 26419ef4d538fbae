"""Batches of images held in memory as bytes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_estimators.datamodules.indexed import PIXELS, IndexedBatches, seeded_generator

__all__ = ["Batches", "sample_pixels"]


def sample_pixels(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn each byte v into True with probability v / 255, exactly: 0 is never on and 255 always.

    Args:
        images: Bytes (uint8) of any shape.
        generator: Source of the noise.

    Returns:
        Booleans of the same shape.
    """
    # Each 64-bit draw gives eight bytes of noise. Noise must be uniform on 0 to 254, so each byte that is 255, one in
    # 256, is drawn again; numpy finds these ten times as fast as torch.
    words = torch.empty(-(-images.numel() // 8), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    noise = words.view(torch.uint8)[: images.numel()].numpy()
    again = np.flatnonzero(noise == 255)
    noise[again] = torch.randint(255, again.shape, dtype=torch.uint8, generator=generator).numpy()
    return torch.from_numpy(noise.reshape(images.shape) < images.numpy())


class Batches(IndexedBatches[Tensor]):
    """Loads float batches in [0, 1] from images held in memory as bytes, without workers.

    On order, shards and resuming see `IndexedBatches`. Batches are float32, of shape `(batch, *images.shape[1:])`.

    Args:
        images: Bytes (uint8), images along the first axis.
        batch_size: Images in a batch of this rank; the last batch may be smaller.
        shuffle: Whether to put the images in a new order in each epoch.
        resample: Whether to draw each pixel anew each time it is loaded, 1 with probability byte / 255; otherwise the
            batch holds byte / 255.
        seed: Seed of the order and of the pixels.
        pad: Whether to repeat images so that all ranks have the same number.
        rank: Index of this rank's shard.
        world_size: Number of shards into which the images are divided.
        limit: How much of an epoch is used before the next one begins: Lightning's `limit_train_batches`.

    Raises:
        ValueError: If there are no images, or a number is out of range.
        TypeError: If the images are not bytes.

    Example:
        >>> import torch
        >>> loader = Batches(torch.arange(5, dtype=torch.uint8)[:, None] * 51, batch_size=2, shuffle=True, seed=1)
        >>> len(loader), sorted(round(x.item(), 1) for batch in loader for x in batch)
        (3, [0.0, 0.2, 0.4, 0.6, 0.8])
    """

    def __init__(
        self,
        images: Tensor,
        batch_size: int,
        *,
        shuffle: bool = False,
        resample: bool = False,
        seed: int = 0,
        pad: bool = False,
        rank: int = 0,
        world_size: int = 1,
        limit: int | float = 1.0,
    ) -> None:
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be bytes (torch.uint8), 0 to 255, got {images.dtype}")
        if len(images) == 0:
            raise ValueError("there are no images to make batches of")
        super().__init__(
            len(images),
            batch_size,
            shuffle=shuffle,
            seed=seed,
            pad=pad,
            rank=rank,
            world_size=world_size,
            limit=limit,
        )
        self.images = images
        self.resample = resample

    def _take(self, indices: Tensor, epoch: int, index: int) -> Tensor:
        images = self.images[indices]
        if self.resample:
            on = sample_pixels(images, seeded_generator(self.seed, PIXELS, epoch, index, self.rank))
            return on.view(torch.uint8).float()  # several times as fast as .float() of booleans
        return images.float().div_(255)
