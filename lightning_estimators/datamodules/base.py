"""The base class of image datasets: splits are held as bytes, binarized in one place, and loaded as whole batches."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lightning_estimators.datamodules.batches import Batches, sample_pixels
from lightning_estimators.datamodules.indexed import STATIC, seeded_generator
from lightning_estimators.datamodules.loading import CheckedDataModule

__all__ = ["Binarization", "ImageDataModule", "Splits", "check_integer"]

Binarization = Literal["dynamic", "static", "threshold", "none"]


class Splits(NamedTuple):
    """Images as bytes (uint8), each of shape `(N,) + image_shape`."""

    train: Tensor
    val: Tensor
    test: Tensor


class ImageDataModule(CheckedDataModule, ABC):
    """Images for generative models, without labels.

    A batch is one float32 tensor of shape `(batch_size,) + image_shape` with entries in [0, 1]. Images are held in
    memory as bytes, and no worker processes are used. Under DDP each rank loads its share (see `Batches`).

    `binarization` says how grey levels become zeros and ones, where a byte v is taken as the probability v / 255:

    - `dynamic`: training images are drawn anew each time they are loaded. Validation and test images are drawn once, by
      the seed, so that curves and bounds can be compared.
    - `static`: all images are drawn once, by the seed.
    - `threshold`: a pixel is 1 where v / 255 > 0.5.
    - `none`: grey levels are kept, as v / 255.

    The `seed` decides the order and the draws and, where the dataset comes without a split of its own (`Digits`,
    `Omniglot`), also the split. Use the same seed for `fit` and for `test`.

    Implementing one:

    1. Set the class attribute `image_shape`, and `seeded_split = True` if `load` splits by the seed.
    2. Implement `load`: read everything under `self.root` and return `Splits`; raise FileNotFoundError through
       `self.not_found(...)` when files are missing.
    3. If it can be downloaded, override `fetch`, which must do nothing if the files are there.
    4. Change no other state: `load` runs on every rank, `fetch` on one rank of each node.

    Attributes:
        image_shape: (channels, height, width), known before `setup`.
        mean: After `setup`, the mean of each pixel of the training images as the model sees them, in expectation over
            the binarization; shape `image_shape`.

    Args:
        root: Folder that holds the files, or into which they are downloaded, in torchvision's layout.
        batch_size: Images in a training batch of each rank; an epoch's last batch may be smaller.
        eval_batch_size: Images in a batch of each rank in validation, test and prediction.
        binarization: How grey levels become zeros and ones: dynamic, static, threshold, or none.
        seed: Seed of splits, of the order of training images, and of binarization.
        download: Whether to download files that are missing.

    Raises:
        ValueError: If an argument is out of range.
        FileNotFoundError: In `setup`, if files are missing.

    Example:
        >>> from lightning_estimators.datamodules import Digits
        >>> data = Digits(batch_size=50)
        >>> data.setup("fit")
        >>> next(iter(data.train_dataloader())).shape
        torch.Size([50, 1, 8, 8])
    """

    image_shape: ClassVar[tuple[int, int, int]]
    seeded_split: ClassVar[bool] = False
    """Whether the seed decides which images are for training and which for test."""

    def __init__(
        self,
        root: str | Path = "data",
        *,
        batch_size: int = 100,
        eval_batch_size: int = 100,
        binarization: Binarization = "dynamic",
        seed: int = 0,
        download: bool = False,
    ) -> None:
        super().__init__()
        # Before it is saved as a hyperparameter: checkpoints are read with weights_only=True, which refuses a Path.
        root = os.path.expanduser(os.fspath(root))
        check_integer("batch_size", batch_size, least=1)
        check_integer("eval_batch_size", eval_batch_size, least=1)
        check_integer("seed", seed, least=0)
        if binarization not in get_args(Binarization):
            raise ValueError(f"binarization must be one of {', '.join(get_args(Binarization))}, got {binarization!r}")
        if not isinstance(download, bool):
            raise ValueError(f"download must be True or False, got {download!r}")
        self.save_hyperparameters()
        self.root = root
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.binarization = binarization
        self.seed = seed
        self.download = download
        self._splits: Splits | None = None
        self._mean: Tensor | None = None

    def __str__(self) -> str:
        # jsonargparse prints datamodules, and Lightning's own `__str__` fails on loaders that are not torch's: it takes
        # them for collections of datasets.
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.hparams.items())})"

    @abstractmethod
    def load(self) -> Splits:
        """Read the images of all splits."""

    def fetch(self) -> None:
        """Download what is missing."""

    def prepare_data(self) -> None:
        """Download what is missing if `download` is set. Runs on one process of each node, before `setup`."""
        if not self.download:
            return
        try:
            self.fetch()
        except (OSError, RuntimeError) as error:
            raise RuntimeError(
                f"{type(self).__name__} could not be downloaded into {os.path.abspath(self.root)!r}: {error}\n"
                "Expected a connection to the internet and a folder that can be written; without them, bring the files "
                "there by other means and leave out download=True (--data.download true)"
            ) from error

    def setup(self, stage: str | None = None) -> None:
        """Load all splits, whatever the stage; later calls do nothing."""
        if self._splits is not None:
            return
        splits = self.load()
        for name, images in splits._asdict().items():
            if images.dtype != torch.uint8 or images.shape[1:] != self.image_shape or len(images) == 0:
                raise ValueError(
                    f"{type(self).__name__}: the {name} images must be bytes (torch.uint8) of shape (N,) + "
                    f"{self.image_shape} with N > 0, got {images.dtype} of shape {tuple(images.shape)}"
                )
        if self.binarization == "threshold":
            splits = Splits(*((images > 127).to(torch.uint8) * 255 for images in splits))
        elif self.binarization != "none":
            # One generator per split, so that a change in the size of one does not change the others.
            static = [
                sample_pixels(images, seeded_generator(self.seed, STATIC, which)).to(torch.uint8) * 255
                for which, images in enumerate(splits)
            ]
            splits = Splits(splits.train if self.binarization == "dynamic" else static[0], *static[1:])
        self._splits = splits
        # In float64: a float32 sum over 50,000 images is wrong in the fourth digit.
        self._mean = (splits.train.sum(0, dtype=torch.float64) / (255 * len(splits.train))).float()

    @property
    def splits(self) -> Splits:
        """The images after `setup`, as bytes; with `dynamic`, the training images are not binarized yet."""
        if self._splits is None:
            raise RuntimeError(f"call {type(self).__name__}.setup() before asking for images")
        return self._splits

    @property
    def mean(self) -> Tensor:
        """Mean training image, shape `image_shape`, after `setup`."""
        if self._mean is None:
            raise RuntimeError(f"call {type(self).__name__}.setup() before asking for the mean")
        return self._mean

    def train_dataloader(self) -> Batches:
        """Training batches, in a new order in each epoch (in the order of the data under `overfit_batches`)."""
        rank, world_size = self._shard()
        # Lightning itself turns shuffling off only for loaders of torch's own class.
        overfit = self.trainer is not None and getattr(self.trainer, "overfit_batches", 0) > 0
        return Batches(
            self.splits.train,
            self.batch_size,
            shuffle=not overfit,
            resample=self.binarization == "dynamic",
            seed=self.seed,
            pad=True,
            rank=rank,
            world_size=world_size,
            limit=self.trainer.limit_train_batches if self.trainer else 1.0,
        )

    def val_dataloader(self) -> Batches:
        """Validation batches: the same in every epoch."""
        return self._evaluation(self.splits.val)

    def test_dataloader(self) -> Batches:
        """Test batches."""
        return self._evaluation(self.splits.test)

    def predict_dataloader(self) -> Batches:
        """Test batches."""
        return self.test_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """Return the seed, by which `load_state_dict` notices that a checkpoint is used with another split."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warn if the checkpoint's model was trained on another split than this one."""
        if self.seeded_split and state_dict.get("seed", self.seed) != self.seed:
            warnings.warn(
                f"the checkpoint was trained on {type(self).__name__}(seed={state_dict['seed']}), this is "
                f"seed={self.seed}, which splits the data otherwise: images that the model was trained on are among "
                f"those of validation and test. Use seed={state_dict['seed']} (--data.seed {state_dict['seed']})",
                stacklevel=2,
            )

    def not_found(self, folder: str, missing: list[str]) -> FileNotFoundError:
        """The error to raise when files are missing.

        Args:
            folder: Where they should be.
            missing: Their names.
        """
        return FileNotFoundError(
            f"{type(self).__name__}: {os.path.abspath(folder)!r} lacks {', '.join(missing)}. Download them with "
            "download=True (--data.download true), or set root (--data.root) to the folder that has them"
        )

    def _evaluation(self, images: Tensor) -> Batches:
        rank, world_size = self._shard()
        return Batches(images, self.eval_batch_size, seed=self.seed, rank=rank, world_size=world_size)

    def _shard(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def check_integer(name: str, value: int, least: int) -> None:
    """Raise ValueError unless an argument is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
