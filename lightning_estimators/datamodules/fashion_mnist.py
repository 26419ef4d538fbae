"""Fashion-MNIST."""

from __future__ import annotations

from typing import Any, ClassVar

import torchvision

from lightning_estimators.datamodules.mnist import MNIST

__all__ = ["FashionMNIST"]


class FashionMNIST(MNIST):
    """Clothes, 28×28: 50,000 to train, 10,000 to validate (the last of the training file), 10,000 to test.

    Args, shapes, binarization and errors: see `ImageDataModule` and `MNIST`. The files have MNIST's names and are in
    `<root>/FashionMNIST/raw`.

    Source: H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking machine learning
    algorithms (2017).
    """

    dataset: ClassVar[Any] = torchvision.datasets.FashionMNIST
