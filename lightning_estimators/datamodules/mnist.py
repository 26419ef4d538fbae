"""MNIST."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import torchvision
from torch import Tensor

from lightning_estimators.datamodules.base import ImageDataModule, Splits

__all__ = ["MNIST"]

FILES = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


class MNIST(ImageDataModule):
    """Handwritten digits, 28×28: 50,000 to train, 10,000 to validate (the last of the training file), 10,000 to test.

    Args, shapes and binarization: see `ImageDataModule`. The files are `{train,t10k}-{images-idx3,labels-idx1}-ubyte`
    in `<root>/MNIST/raw`.

    Raises:
        FileNotFoundError: In `setup`, if files are missing.
        ValueError: In `setup`, if a file is damaged.

    Source: Y. LeCun, C. Cortes and C. Burges, The MNIST database of handwritten digits (1998).
    """

    image_shape: ClassVar[tuple[int, int, int]] = (1, 28, 28)
    dataset: ClassVar[Any] = torchvision.datasets.MNIST
    """torchvision's class, which knows the files' format and where to get them."""

    @property
    def folder(self) -> str:
        """Where the files are."""
        return os.path.join(self.root, self.dataset.__name__, "raw")

    def fetch(self) -> None:
        """Download the files that are missing."""
        self.dataset(self.root, download=True)

    def load(self) -> Splits:
        """Read both files and set the last sixth of the training images apart."""
        missing = [name for name in FILES if not os.path.isfile(os.path.join(self.folder, name))]
        if missing:
            raise self.not_found(self.folder, missing)
        train, test = self._read(train=True), self._read(train=False)
        split = len(train) - len(train) // 6
        return Splits(train[:split], train[split:], test)

    def _read(self, *, train: bool) -> Tensor:
        try:
            images: Tensor = self.dataset(self.root, train=train).data
        except Exception as error:  # torchvision checks by assert, and numpy and torch complain in ways of their own
            raise ValueError(
                f"{type(self).__name__}: the {'train' if train else 't10k'} files in {os.path.abspath(self.folder)!r} "
                f"are damaged ({error!r}). Delete the folder and download it again with download=True "
                "(--data.download true)"
            ) from error
        return images.unsqueeze(1)
