"""The handwritten digits that come with scikit-learn: real images without a download."""

from __future__ import annotations

from typing import ClassVar

import torch
from sklearn.datasets import load_digits

from lightning_estimators.datamodules.base import ImageDataModule, Splits
from lightning_estimators.datamodules.indexed import SPLIT, seeded_generator

__all__ = ["Digits"]


class Digits(ImageDataModule):
    """The 1797 handwritten digits that come with scikit-learn, 8×8 pixels of 17 grey levels.

    The seed splits them into 1400 images to train, 200 to validate and 197 to test. The dataset is for trying things
    out: nothing is downloaded or written, so `root` and `download` have no effect. See `ImageDataModule` for the
    arguments, the shapes and the binarization.

    Source: the test set of Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, https://doi.org/10.24432/C50P49, as `sklearn.datasets.load_digits` returns it.

    Example:
        >>> data = Digits(batch_size=100, binarization="none")
        >>> data.setup()
        >>> [len(images) for images in data.splits]
        [1400, 200, 197]
        >>> len(data.train_dataloader())
        14
    """

    image_shape: ClassVar[tuple[int, int, int]] = (1, 8, 8)
    seeded_split: ClassVar[bool] = True

    def load(self) -> Splits:
        """Read the images out of scikit-learn and split them."""
        levels = torch.as_tensor(load_digits().images)  # 0..16
        images = (levels * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
        order = torch.randperm(len(images), generator=seeded_generator(self.seed, SPLIT))
        images = images[order]
        return Splits(images[:1400], images[1400:1600], images[1600:])
