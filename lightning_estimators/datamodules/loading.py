"""Data modules that are built from a checkpoint without running anything that it names."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import lightning.pytorch as pl

from lightning_estimators.checkpoints import check_classes, hyper_parameters, read_checkpoint

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["CheckedDataModule"]


class CheckedDataModule(pl.LightningDataModule):
    """A data module whose `load_from_checkpoint` is as careful as that of `EstimatorModule`."""

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[Any],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        weights_only: bool | None = None,  # noqa: FBT001  the signature is Lightning's
        *,
        trust_checkpoint: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Build the data module that was in use when the checkpoint was saved.

        Args:
            checkpoint_path: Path, URL or open file.
            map_location: As in `torch.load`.
            hparams_file: A file with hyper-parameters to use instead of those in the checkpoint.
            weights_only: As in `torch.load`; True unless it is given, also for a URL.
            trust_checkpoint: Whether to import whatever the checkpoint names.
            **kwargs: Arguments of the constructor that replace those of the checkpoint.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is no checkpoint, or it names something that must not be built or imported on its word.
        """
        weights_only = weights_only is not False
        checkpoint = read_checkpoint(checkpoint_path, weights_only=weights_only)
        named = hyper_parameters(cls, checkpoint, hparams_file)
        built = {name: value for name, value in named.items() if name not in kwargs}
        check_classes(built, {"*"} if trust_checkpoint else {cls.__module__.partition(".")[0]})
        loaded: Self = super().load_from_checkpoint(
            checkpoint_path, map_location, hparams_file, weights_only=weights_only, **kwargs
        )
        return loaded
