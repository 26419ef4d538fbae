"""The MNIST handwritten digits."""

from __future__ import annotations

import hashlib
import os
from typing import Any, ClassVar

import torchvision
from torch import Tensor

from lightning_estimators.datamodules.base import ImageDataModule, Splits

__all__ = ["MNIST"]

FILES = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]

STANDARD_COUNTS = {"train": 60_000, "t10k": 10_000}
"""Images in the published training and test files, of MNIST as of Fashion-MNIST."""

CHECKSUMS = {
    "MNIST": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "FashionMNIST": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}
"""MD5 sums of the published files after decompression, by the name of torchvision's class. (Those that torchvision
knows are of the compressed downloads.)"""


class MNIST(ImageDataModule):
    """Handwritten digits of 28×28 pixels: 50,000 to train, 10,000 to validate, 10,000 to test.

    The validation images are the last of the training file. The four files
    `{train,t10k}-{images-idx3,labels-idx1}-ubyte` are expected in `<root>/MNIST/raw`, decompressed, as torchvision
    leaves them. See `ImageDataModule` for the arguments, the shapes and the binarization.

    Files with the published number of images must have the published contents: their MD5 sums are compared at every
    start, which takes about a tenth of a second. Files with any other number of images, such as a small selection for
    trying things out, are used as they are, as long as there are as many labels as images.

    Raises:
        FileNotFoundError: In `setup`, if files are missing.
        ValueError: In `setup`, if a file is damaged, or if training and test files were exchanged.

    Source: LeCun, Cortes and Burges (1998), The MNIST database of handwritten digits,
    http://yann.lecun.com/exdb/mnist/.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (1, 28, 28)
    dataset: ClassVar[Any] = torchvision.datasets.MNIST
    """The class of torchvision that knows the format of the files and where to download them."""

    @property
    def folder(self) -> str:
        """The folder in which the files are expected."""
        return os.path.join(self.root, self.dataset.__name__, "raw")

    def fetch(self) -> None:
        """Download the files unless all of them are there."""
        if self._missing():
            self.dataset(self.root, download=True)

    def load(self) -> Splits:
        """Read and check the files, and set the last sixth of the training images apart for validation."""
        missing = self._missing()
        if missing:
            raise self.not_found(self.folder, missing)
        train, test = self._read("train"), self._read("t10k")
        split = len(train) - len(train) // 6
        return Splits(train[:split], train[split:], test)

    def _missing(self) -> list[str]:
        return [name for name in FILES if not os.path.isfile(os.path.join(self.folder, name))]

    def _read(self, split: str) -> Tensor:
        """Return the images of "train" or "t10k", shape (N, 1, 28, 28)."""
        try:
            dataset = self.dataset(self.root, train=split == "train")
        except Exception as error:  # torchvision checks by assert, and NumPy and torch raise errors of many kinds
            raise self._damaged(split, repr(error)) from error
        images: Tensor = dataset.data
        if len(images) != len(dataset.targets):
            raise self._damaged(split, f"{len(images)} images, but {len(dataset.targets)} labels")
        if len(images) in STANDARD_COUNTS.values():
            self._check_contents(split, len(images))
        return images.unsqueeze(1)

    def _check_contents(self, split: str, count: int) -> None:
        """Compare the files of a split with the published ones, if these are known and have as many images."""
        published = CHECKSUMS.get(self.dataset.__name__, {})
        names = {checksum: name for name, checksum in published.items()}
        for name in (name for name in published if name.startswith(split)):
            with open(os.path.join(self.folder, name), "rb") as file:
                checksum = hashlib.md5(file.read(), usedforsecurity=False).hexdigest()
            if checksum == published[name]:
                continue
            if checksum in names:
                raise self._damaged(split, f"{name} holds what should be in {names[checksum]}")
            if count == STANDARD_COUNTS[split]:
                raise self._damaged(split, f"the MD5 sum of {name} should be {published[name]}, but is {checksum}")

    def _damaged(self, split: str, reason: str) -> ValueError:
        return ValueError(
            f"{type(self).__name__}: the {split} files in {os.path.abspath(self.folder)!r} are damaged ({reason}). "
            "Delete the folder and download it again with download=True (--data.download true)"
        )
