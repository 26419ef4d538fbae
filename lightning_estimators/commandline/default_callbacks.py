"""Pictures and videos that nobody has to ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_estimators.callbacks import EpisodeVideo, Reconstructions
from lightning_estimators.datamodules import Gymnasium

__all__ = ["default_callbacks"]


def default_callbacks(
    subcommand: str | None,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    loggers: Sequence[Any],
    given: Sequence[Callback],
) -> list[Callback]:
    """Return what is added to the callbacks of a run: images of models that draw some, a video where a policy plays.

    Args:
        subcommand: "fit", "predict", ...
        model: What is run.
        datamodule: On what.
        loggers: Of the run.
        given: Callbacks that were asked for; none of them is added once more.
    """
    added: list[Callback] = []
    draws = all(callable(getattr(model, name, None)) for name in ("reconstruct", "sample_prior"))
    if draws and hasattr(datamodule, "image_shape") and any(isinstance(one, TensorBoardLogger) for one in loggers):
        added.append(Reconstructions(every_n_epochs=10))
    if subcommand == "predict" and isinstance(datamodule, Gymnasium):
        added.append(EpisodeVideo())
    return [one for one in added if not any(isinstance(other, type(one)) for other in given)]
