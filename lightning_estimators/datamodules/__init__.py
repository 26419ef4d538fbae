"""Lightning datamodules, one file per dataset: examples in memory, in batches that resume and shard exactly."""

from lightning_estimators.datamodules.base import ImageDataModule, Splits
from lightning_estimators.datamodules.batches import Batches
from lightning_estimators.datamodules.breast_cancer import BreastCancer, LabelledSplits
from lightning_estimators.datamodules.digits import Digits
from lightning_estimators.datamodules.fashion_mnist import FashionMNIST
from lightning_estimators.datamodules.gymnasium import Gymnasium
from lightning_estimators.datamodules.indexed import IndexedBatches
from lightning_estimators.datamodules.mnist import MNIST
from lightning_estimators.datamodules.omniglot import Omniglot
from lightning_estimators.datamodules.rollouts import Rollouts
from lightning_estimators.datamodules.rows import Rows
from lightning_estimators.datamodules.toy import Toy

__all__ = [
    "MNIST",
    "Batches",
    "BreastCancer",
    "Digits",
    "FashionMNIST",
    "Gymnasium",
    "ImageDataModule",
    "IndexedBatches",
    "LabelledSplits",
    "Omniglot",
    "Rollouts",
    "Rows",
    "Splits",
    "Toy",
]
