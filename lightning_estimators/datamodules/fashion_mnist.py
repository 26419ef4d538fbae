"""The Fashion-MNIST images of clothes."""

from __future__ import annotations

from typing import Any, ClassVar

import torchvision

from lightning_estimators.datamodules.mnist import MNIST

__all__ = ["FashionMNIST"]


class FashionMNIST(MNIST):
    """Images of clothes of 28×28 pixels: 50,000 to train, 10,000 to validate, 10,000 to test.

    The validation images are the last of the training file. The files have MNIST's names and are expected in
    `<root>/FashionMNIST/raw`. See `ImageDataModule` for the arguments, the shapes and the binarization, and `MNIST` for
    the errors.

    Source: Xiao, Rasul and Vollgraf (2017), Fashion-MNIST: a novel image dataset for benchmarking machine learning
    algorithms, https://arxiv.org/abs/1708.07747.
    """

    dataset: ClassVar[Any] = torchvision.datasets.FashionMNIST
