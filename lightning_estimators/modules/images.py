"""The base class of models of images: checks of shape and range, and the mean of the training images."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_estimators.modules.base import EstimatorModule

__all__ = ["ImageModel"]


class ImageModel(EstimatorModule, ABC):
    """A model of images that knows their shape and the mean of the training images.

    A batch is one floating-point tensor of images, shape `(B, *image_shape)` or `(B, pixels)`, or a tuple or list that
    begins with one, such as the pairs of image and label that torchvision's datasets give; what follows the images is
    ignored.

    The mean is taken once, when a model that has none is first fitted: from the argument `data_mean` if it was given,
    otherwise from the attribute `mean` of the datamodule. It is saved in checkpoints (buffers `data_mean` and
    `mean_known`).

    Where pixels are probabilities, as they are for a Bernoulli likelihood, images and their mean must lie in [0, 1].
    Images are checked in the first training batch and in the first evaluation batch of each call of the Trainer, so
    that no other step pays for it, and not inside `torch.compile`.

    Implementing one:

    1. Build the networks in `__init__`, after `super().__init__(...)`; then call `_centre(image_shape, data_mean)`.
    2. Implement `_output_layer` and `_output_at`, which decide where the bias of the pixels starts.
    3. Read images through `_pixels`, and give the encoder `pixels - data_mean`.
    4. Override `_pixels_are_probabilities` for a likelihood of pixels outside [0, 1].
    """

    data_mean: Tensor
    mean_known: Tensor

    @abstractmethod
    def _output_layer(self) -> nn.Linear:
        """Return the layer whose bias gives the pixels their mean."""

    @abstractmethod
    def _output_at(self, mean: Tensor) -> Tensor:
        """Return the output of that layer for which the means of the pixels are the given ones."""

    def _pixels_are_probabilities(self) -> bool:
        """Return whether pixels must lie in [0, 1]."""
        return True

    def _centre(self, image_shape: tuple[int, int, int], data_mean: float | list[float] | None) -> None:
        """Take the shape of the images, and their mean if it is given.

        Args:
            image_shape: Channels, height and width.
            data_mean: One number per pixel, or one for all; None to ask the datamodule.
        """
        self.register_buffer("data_mean", torch.zeros(self._num_pixels(image_shape)))
        self.image_shape = tuple(image_shape)
        self.register_buffer("mean_known", torch.tensor(False))
        self._modes_checked: set[bool] = set()
        if data_mean is not None:
            self._set_data_mean(torch.as_tensor(data_mean))

    def _num_pixels(self, image_shape: tuple[int, int, int]) -> int:
        """Return the number of pixels of an image.

        Raises:
            ValueError: This is no shape of images, such as that of data without images.
        """
        if image_shape is None or len(image_shape) != 3 or min(image_shape) < 1:
            raise ValueError(
                f"{type(self).__name__} needs image_shape, the channels, height and width of the images, got "
                f"{image_shape}. On the command line the data say what it is: choose images, such as --data Digits."
            )
        return math.prod(image_shape)

    def setup(self, stage: str) -> None:
        """Take the training mean when a model that has none is first fitted.

        Args:
            stage: What the Trainer is about to do: fit, validate, test or predict.

        Raises:
            ValueError: No mean is given, or it cannot be one.
        """
        super().setup(stage)
        self._modes_checked.clear()
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

    def _pixels(self, batch: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the images of a batch as rows, shape (B, pixels)."""
        x = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if not isinstance(x, Tensor) or (x.ndim != 2 and x.shape[1:] != self.image_shape):
            given = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"{type(self).__name__} expects a batch to be a tensor of images of shape {('B', *self.image_shape)}, "
                f"or a tuple or list that begins with one, got {given}. Set image_shape to the shape of the images, "
                "or let the dataloader yield the images first."
            )
        # Looking at the numbers waits for the device, and would break the graph of a module that is compiled.
        if self.training not in self._modes_checked and not torch.compiler.is_compiling():
            self._check_images(x)
            self._modes_checked.add(self.training)
        return x.flatten(1)

    def _check_images(self, x: Tensor) -> None:
        """Refuse images that are no floating-point numbers, or that lie outside [0, 1] where they must not."""
        if not x.is_floating_point():
            raise ValueError(
                f"{type(self).__name__} expects images of a floating-point type, got {x.dtype}. Convert bytes by "
                "images.float() / 255 (torchvision.transforms.ToTensor does), and booleans by images.float()."
            )
        # NaN passes: the figures that come of it are NaN, and training stops by name.
        if self._pixels_are_probabilities() and bool(((x < 0) | (x > 1)).any()):
            raise ValueError(
                f"{type(self).__name__} expects the pixels of images to lie in [0, 1], got pixels from "
                f"{x.min().item():.6g} to {x.max().item():.6g}. Divide bytes by 255, and do not standardise the images."
            )

    @torch.no_grad()
    def _set_data_mean(self, mean: Tensor) -> None:
        """Keep the mean of the training images, and start the bias of the pixels there.

        Args:
            mean: One number, or one per pixel, in any shape.

        Raises:
            ValueError: The number of entries is another, or one of them cannot be the mean of a pixel.
        """
        pixels = len(self.data_mean)
        if mean.numel() not in (1, pixels):
            raise ValueError(
                f"the data mean must have one number, or one per pixel of images of shape {self.image_shape}; "
                f"got shape {tuple(mean.shape)}."
            )
        fits = mean.isfinite()
        if self._pixels_are_probabilities():
            fits = fits & (mean >= 0) & (mean <= 1)
        if not bool(fits.all()):
            expected = "in [0, 1], as the pixels do" if self._pixels_are_probabilities() else "finite"
            raise ValueError(
                f"the data mean must be {expected}, got {mean[~fits].flatten()[0].item():.6g}. Divide the mean of "
                "bytes by 255, and look for pixels that are NaN."
            )
        self.data_mean.copy_(mean.reshape(-1).expand(pixels))
        self._output_layer().bias.copy_(self._output_at(self.data_mean))
        self.mean_known.fill_(True)
