"""A LightningModule whose checkpoints can build it again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.cloud_io import _load
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters

from lightning_estimators.configurable import Configurable, encode, import_path, unrecorded

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["CHECKPOINT_KEY", "RecordedModule"]

CHECKPOINT_KEY = "lightning_estimators"
"""Where a checkpoint keeps the configuration of "model" and "data" for the command line, and what is "unrecorded"."""


_INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"  # of the few that Lightning trusts in a checkpoint


class RecordedModule(Configurable, pl.LightningModule):
    """Keeps its constructor call, estimators and optimizers included, as hyper-parameters that are plain data.

    `save_hyperparameters()` would keep the objects themselves, which `torch.load(weights_only=True)` refuses, so that
    resuming and testing from a checkpoint would fail. Here they are kept as class paths and arguments, the form in
    which Lightning's command line keeps them, so that `load_from_checkpoint(path)` needs no arguments either way.
    Subclasses need not call `save_hyperparameters`.

    An argument that cannot be written down (a plain `nn.Module`, a lambda) is left out. Training, resuming and
    `trainer.test(model, ckpt_path=...)` do not need it; `load_from_checkpoint` asks for it by name. Inherit
    `lightning_estimators.configurable.Configurable` in a network to have it written down too.
    """

    def __init__(self) -> None:
        super().__init__()
        # Not given to the logger: an argument that a datamodule has too, with another value, would stop the run there.
        # Under a LightningCLI the parsed command line is the better record: it still knows how callables were made.
        self._parsed = _given_hyperparameters.get() is not None
        if self._parsed:
            self.save_hyperparameters(logger=False)
        else:
            self.save_hyperparameters(_plain(self._given()) | {"_instantiator": _INSTANTIATOR}, logger=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep plain data only, and what the command line needs to build model and data from this checkpoint.

        Args:
            checkpoint: What is about to be saved.
        """
        super().on_save_checkpoint(checkpoint)
        # A subclass that called `save_hyperparameters()` itself has put its arguments there as they are.
        given = {name: encode(value) for name, value in self.hparams.items()} | ({} if self._parsed else self._given())
        hyperparameters = _plain(given)
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = hyperparameters
        kept = checkpoint.setdefault(CHECKPOINT_KEY, {})
        # The command line writes a fuller record before this hook runs.
        special = ("_class_path", "_instantiator")
        init_args = {name: value for name, value in hyperparameters.items() if name not in special}
        if path := hyperparameters.get("_class_path") or import_path(type(self)):
            kept.setdefault("model", {"class_path": path, "init_args": init_args})
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None and (path := import_path(type(datamodule))):
            data = _plain({name: encode(value) for name, value in datamodule.hparams.items() if name not in special})
            kept.setdefault("data", {"class_path": path, "init_args": data})
        kept["unrecorded"] = {
            name: [(path, found.what) for path, found in unrecorded({name: value})]
            for name, value in given.items()
            if any(unrecorded(value))
        }

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[Any],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,  # noqa: FBT001  the signature is Lightning's
        weights_only: bool | None = None,  # noqa: FBT001
        **kwargs: Any,
    ) -> Self:
        """Build the module that the checkpoint was made of, as Lightning does, and load its weights.

        Args:
            checkpoint_path: Path, URL or open file.
            map_location: As in `torch.load`.
            hparams_file: A file with hyper-parameters to use instead of those in the checkpoint.
            strict: Whether the keys of the weights must match.
            weights_only: As in `torch.load`.
            **kwargs: Arguments of the constructor that replace those of the checkpoint.

        Raises:
            ValueError: The checkpoint could not keep an argument, and it is not given.
        """
        missing = {name: found for name, found in _unrecorded_arguments(checkpoint_path).items() if name not in kwargs}
        if missing and hparams_file is None:
            what = "; ".join(f"{path} was a {kind}" for found in missing.values() for path, kind in found)
            given = ", ".join(f"{name}=..." for name in missing)
            raise ValueError(
                f"the checkpoint could not keep {' and '.join(missing)} of {cls.__name__} ({what}, which does not "
                f"record how it was built). Give it: {cls.__name__}.load_from_checkpoint(path, {given}). Inheriting "
                "lightning_estimators.configurable.Configurable in that class makes later checkpoints keep it."
            )
        module: Self = super().load_from_checkpoint(
            checkpoint_path, map_location, hparams_file, strict, weights_only, **kwargs
        )
        return module

    def _given(self) -> dict[str, Any]:
        recorded: dict[str, Any] = self.configuration()["init_args"]
        return recorded


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if not any(unrecorded(value))}


def _unrecorded_arguments(checkpoint_path: Any) -> dict[str, list[tuple[str, str]]]:
    if isinstance(checkpoint_path, (str, os.PathLike)) and os.path.isfile(checkpoint_path):
        try:
            # The weights stay on disk: this is read for a few words only.
            checkpoint = torch.load(checkpoint_path, map_location="cpu", weights_only=True, mmap=True)
        except Exception:  # an older file format, or objects of the user's: Lightning's own reading decides
            return {}
    elif hasattr(checkpoint_path, "seek"):
        position = checkpoint_path.tell()
        checkpoint = _load(checkpoint_path, map_location="cpu", weights_only=True)
        checkpoint_path.seek(position)
    else:
        return {}
    found: dict[str, list[tuple[str, str]]] = checkpoint.get(CHECKPOINT_KEY, {}).get("unrecorded", {})
    return found
