"""A callback that shows reconstructed and generated images of a generative model in TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchvision.utils import make_grid

from lightning_estimators.arguments import CheckedArguments
from lightning_estimators.isolation import isolated

__all__ = ["Reconstructions"]


class _Draws(Protocol):
    def reconstruct(self, x: Tensor) -> Tensor: ...
    def sample_prior(self, n: int) -> Tensor: ...


class Reconstructions(CheckedArguments, pl.Callback):
    """Writes grids of images to TensorBoard: inputs, their reconstructions, and samples from the prior.

    ========================  =========================================================================================
    TensorBoard tag           meaning
    ========================  =========================================================================================
    `images/inputs`           the first images of the first validation batch
    `images/reconstructions`  `module.reconstruct` of these images, in the same places
    `images/prior_samples`    `module.sample_prior`, always under the same noise, so that only the weights differ
    ========================  =========================================================================================

    They are written at the end of a validation during `fit`, every `every_n_epochs` epochs, and once more when `fit`
    ends (from the first training batch if there was no validation). Other loggers than TensorBoard get nothing. Random
    generators, buffers and train/eval modes are restored, so training is bit-identical with and without the callback.

    The module needs two methods: `reconstruct(x)`, which maps images of shape `(n, C, H, W)` to images of that shape,
    and `sample_prior(n)`, which returns images of shape `(n, C, H, W)`. Values outside of [0, 1] are clamped.

    A batch may be a tensor of images, a tuple or list that starts with one, or a mapping with exactly one such tensor;
    for other batches, override `images`. All processes compute the images, so that the module may communicate between
    them, and the first one writes.

    Args:
        num_images: Images per grid; fewer if the batch has fewer.
        every_n_epochs: Epochs between two grids.

    Raises:
        ValueError: An argument is not positive, or a batch holds no images.
        TypeError: At the start of `fit`: the module has no `reconstruct` or no `sample_prior`.

    Example:
        >>> trainer = pl.Trainer(callbacks=[Reconstructions(num_images=16)], logger=False, enable_checkpointing=False)
    """

    def __init__(self, num_images: int = 64, every_n_epochs: int = 1) -> None:
        super().__init__()
        for name, number in {"num_images": num_images, "every_n_epochs": every_n_epochs}.items():
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be a positive integer, got {number!r}.")
        self.num_images = num_images
        self.every_n_epochs = every_n_epochs
        self._inputs: Tensor | None = None
        self._written_at: int | None = None
        self._validated = False

    def images(self, batch: Any) -> Tensor:
        """Return the images of a batch, shape (B, C, H, W); override it for batches of another form."""
        candidates = [batch]
        if isinstance(batch, Mapping):
            candidates = [entry for entry in batch.values() if isinstance(entry, Tensor) and entry.ndim == 4]
        elif isinstance(batch, (tuple, list)):
            candidates = list(batch[:1])
        if len(candidates) != 1 or not isinstance(candidates[0], Tensor) or candidates[0].ndim != 4:
            raise ValueError(
                "Reconstructions expects a batch to be a tensor of images of shape (B, C, H, W), a tuple or list that "
                f"starts with one, or a mapping with exactly one; got {_describe(batch)}. "
                "Override `Reconstructions.images(batch)` to say where the images are."
            )
        return candidates[0]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse modules without the two methods, and warn if there is no TensorBoard logger."""
        if stage != "fit":
            return
        missing = [name for name in ("reconstruct", "sample_prior") if not callable(getattr(pl_module, name, None))]
        if missing:
            raise TypeError(
                "Reconstructions needs a module with methods reconstruct(x) and sample_prior(n); "
                f"{type(pl_module).__name__} has no {' and no '.join(missing)}. Add it, or remove the callback."
            )
        self._inputs, self._written_at, self._validated = None, None, False
        if not _tensorboards(trainer) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(
                "Reconstructions writes to TensorBoard only, and the trainer has no TensorBoardLogger: no images will "
                "be written. Add Trainer(logger=TensorBoardLogger(...)), or remove the callback."
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep images of the first batch, for runs that end before a validation."""
        if self._inputs is None:
            self._keep(trainer, batch)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep images of the first batch."""
        if trainer.state.fn == TrainerFn.FITTING and not self._validated:
            self._validated = True
            self._keep(trainer, batch)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the grids if this epoch's turn has come."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the grids of the final weights."""
        self._write(trainer, pl_module)

    def _keep(self, trainer: pl.Trainer, batch: Any) -> None:
        if _tensorboards(trainer):
            self._inputs = self.images(batch)[: self.num_images].detach().clone()

    def _last_step(self, trainer: pl.Trainer) -> int:
        # Scalars of the last batch and of the validation that followed it are logged there.
        return max(trainer.global_step - 1, 0)

    def _write(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._inputs is None or trainer.global_step == self._written_at:
            return
        self._written_at = trainer.global_step
        draws = cast(_Draws, module)
        with isolated(module), torch.no_grad(), trainer.precision_plugin.val_step_context():
            module.eval()
            torch.manual_seed(0)
            pictures = {
                "images/inputs": self._inputs,
                "images/reconstructions": draws.reconstruct(self._inputs),
                "images/prior_samples": draws.sample_prior(len(self._inputs)),
            }
        if not trainer.is_global_zero:
            return
        for tag, picture in pictures.items():
            if picture.ndim != 4 or picture.shape[1] not in (1, 3):
                raise ValueError(
                    f"{tag} must be images of shape (n, C, H, W) with 1 or 3 channels C, got {tuple(picture.shape)}. "
                    "Have `images`, or the module's `reconstruct` or `sample_prior`, return that shape."
                )
            per_row = math.ceil(math.sqrt(len(picture)))
            grid = make_grid(picture.detach().float().clamp(0, 1).cpu(), nrow=per_row, pad_value=0.5)
            for logger in _tensorboards(trainer):
                logger.experiment.add_image(tag, grid, self._last_step(trainer))


def _tensorboards(trainer: pl.Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _describe(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return f"a tensor of shape {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        return f"a mapping with {', '.join(f'{name!r}: {_describe(entry)}' for name, entry in batch.items())}"
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {', '.join(map(_describe, batch)) or 'nothing'}"
    return f"a {type(batch).__name__}"
