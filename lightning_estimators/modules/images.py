"""Models of images that see them centred on their training mean."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_estimators.modules.base import EstimatorModule

__all__ = ["ImageModel"]


class ImageModel(EstimatorModule, ABC):
    """Takes images, one tensor to a batch, and knows their training mean.

    The mean is taken once, when a model that has none is first fitted: from `data_mean` if given, else from the
    attribute `mean` of the datamodule. It is part of the checkpoint (buffers `data_mean` and `mean_known`).

    Implementing one:

    1. Build the networks in `__init__`, after `super().__init__(...)`; then call `_centre(image_shape, data_mean)`.
    2. Implement `_output_layer` and `_output_at`, which decide where the bias of the pixels starts.
    3. Read images through `_pixels`, and give the encoder `pixels - data_mean`.
    """

    data_mean: Tensor
    mean_known: Tensor

    @abstractmethod
    def _output_layer(self) -> nn.Linear:
        """Return the layer whose bias gives the pixels their mean."""

    @abstractmethod
    def _output_at(self, mean: Tensor) -> Tensor:
        """Return the output of that layer for which the means of the pixels are the given ones."""

    def _centre(self, image_shape: tuple[int, int, int], data_mean: float | list[float] | None) -> None:
        """Take the shape of the images, and their mean if it is given.

        Args:
            image_shape: Channels, height and width.
            data_mean: One number per pixel, or one for all; None to ask the datamodule.
        """
        self.register_buffer("data_mean", torch.zeros(self._num_pixels(image_shape)))
        self.image_shape = tuple(image_shape)
        self.register_buffer("mean_known", torch.tensor(False))
        if data_mean is not None:
            self._set_data_mean(torch.as_tensor(data_mean))

    def _num_pixels(self, image_shape: tuple[int, int, int]) -> int:
        """Return the number of pixels; refuse what is no shape of images, such as that of data without images."""
        if image_shape is None or len(image_shape) != 3 or min(image_shape) < 1:
            raise ValueError(
                f"{type(self).__name__} needs image_shape, the channels, height and width of the images, got "
                f"{image_shape}. On the command line the data say what it is: choose images, such as --data Digits."
            )
        return math.prod(image_shape)

    def setup(self, stage: str) -> None:
        """Take the training mean when a model that has none is first fitted."""
        super().setup(stage)
        if stage != "fit" or bool(self.mean_known):
            return
        mean = getattr(getattr(self.trainer, "datamodule", None), "mean", None)
        if not isinstance(mean, Tensor):
            raise ValueError(
                f"{type(self).__name__} needs the mean of the training images, to centre its input and to start the "
                "bias of its output: expected a tensor `mean` at the datamodule, or the argument data_mean (one number "
                f"per pixel, or one for all); got {'none' if mean is None else type(mean).__name__}. "
                "Without a datamodule give e.g. data_mean=images.mean(0).flatten().tolist()."
            )
        self._set_data_mean(mean)

    def on_test_start(self) -> None:
        """Warn if there is nothing to test."""
        if not bool(self.mean_known):
            rank_zero_warn(
                f"Testing a {type(self).__name__} that was never fitted: give ckpt_path to load a trained one."
            )

    def _pixels(self, x: Tensor) -> Tensor:
        """Images, one row each."""
        if not isinstance(x, Tensor) or (x.ndim != 2 and x.shape[1:] != self.image_shape):
            given = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"{type(self).__name__} expects a batch to be one tensor of images of shape "
                f"{('B', *self.image_shape)}, got {given}. Set image_shape, or let the dataloader yield images alone."
            )
        return x.flatten(1)

    @torch.no_grad()
    def _set_data_mean(self, mean: Tensor) -> None:
        pixels = len(self.data_mean)
        if mean.numel() not in (1, pixels):
            raise ValueError(
                f"the data mean must have one number, or one per pixel of images of shape {self.image_shape}; "
                f"got shape {tuple(mean.shape)}."
            )
        self.data_mean.copy_(mean.reshape(-1).expand(pixels))
        self._output_layer().bias.copy_(self._output_at(self.data_mean))
        self.mean_known.fill_(True)
