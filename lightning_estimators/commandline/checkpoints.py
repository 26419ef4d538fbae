"""Finding the checkpoints of earlier runs, and what they say of the model and data they were made of."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from lightning_estimators.commandline.settings import Settings
from lightning_estimators.modules.recorded import CHECKPOINT_KEY

__all__ = ["checkpoint_path", "find_checkpoint", "saved_configuration"]


def checkpoint_path(settings: Settings) -> str | None:
    """Return the file that `--ckpt_path` means, None without that option.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The newest run did not say what "best" means.
    """
    path = settings.get("ckpt_path")
    if path in (None, "", "null"):
        return None
    if path in ("last", "best"):
        named = ("trainer.default_root_dir", "trainer.logger.save_dir", "checkpoint.dirpath")
        folders = [settings[name] for name in named if settings.get(name) not in (None, "null")]
        # With a folder of its own for the logger, the root may still hold the checkpoints of runs without one.
        return str(find_checkpoint(str(path), folders or [Path.cwd()]))
    if path != "hpc" and "://" not in str(path) and not str(path).startswith("registry") and not os.path.isfile(path):
        raise FileNotFoundError(f"--ckpt_path: there is no file {path}. Give the path of a checkpoint, last, or best.")
    return str(path)


def find_checkpoint(which: str, folders: Iterable[str | Path]) -> Path:
    """Return the newest last (or the best) checkpoint under the folders runs are logged in.

    Args:
        which: "last": the newest `last*.ckpt`. "best": the best one of the run that wrote that.
        folders: Folders given to loggers and checkpoint callbacks.

    Raises:
        FileNotFoundError: There is none.
        ValueError: The newest run did not say what "best" means.
    """
    searched = sorted({Path(folder).absolute() for folder in folders})
    # Where Lightning puts them: save_dir/name/version/checkpoints, without a logger checkpoints, or a given folder.
    patterns = ("last*.ckpt", "checkpoints/last*.ckpt", "*/checkpoints/last*.ckpt", "*/*/checkpoints/last*.ckpt")
    found = {path for folder in searched for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    if not found:
        raise FileNotFoundError(
            f"--ckpt_path {which}: no last.ckpt of an earlier run under {', '.join(map(str, searched))}. Run `fit` in "
            "this folder first (with --checkpoint.save_last true, the default), or give the path of a checkpoint."
        )
    newest = max(found, key=lambda path: (path.stat().st_mtime_ns, str(path)))
    return newest if which == "last" else _best(newest)


def saved_configuration(path: str | Path) -> dict[str, Any]:
    """Return what a checkpoint says of "model", "data" and "seed_everything", as the command line writes them.

    Raises:
        ValueError: The file is no checkpoint, or holds more than plain data.
    """
    checkpoint = _read(path)
    kept = dict(checkpoint.get(CHECKPOINT_KEY, {}))
    if "model" not in kept:  # one made by another LightningCLI
        hyperparameters = dict(checkpoint.get("hyper_parameters", {}))
        hyperparameters.pop("_instantiator", None)
        if class_path := hyperparameters.pop("_class_path", None):
            kept["model"] = {"class_path": class_path, "init_args": hyperparameters}
    return {name: kept[name] for name in ("model", "data", "seed_everything") if name in kept}


def _best(last: Path) -> Path:
    states = [state for name, state in _read(last).get("callbacks", {}).items() if name.startswith("ModelCheckpoint")]
    monitored = [state for state in states if state.get("monitor") and state.get("best_model_path")]
    if not monitored:
        raise ValueError(
            f"--ckpt_path best: the newest run (it wrote {last}) monitored no metric, so none of its checkpoints "
            "is the best. Train with --checkpoint.monitor val/loss, or use --ckpt_path last."
        )
    best = Path(monitored[0]["best_model_path"])
    beside = last.with_name(best.name)  # where it is if the folder was moved
    for path in (beside, best):
        if path.is_file():
            return path
    raise FileNotFoundError(f"--ckpt_path best: {best}, the best checkpoint of the newest run, is gone.")


def _read(path: str | Path) -> dict[str, Any]:
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is no checkpoint, or a damaged one: expected the zip archive that torch.save writes, got "
            f"{os.path.getsize(path)} bytes of something else. Give another checkpoint, or train again."
        )
    try:
        # The weights stay on disk.
        checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint of plain data (torch.load with weights_only=True): "
            f"{str(error).splitlines()[0]}"
        ) from error
    needed = ("state_dict", "pytorch-lightning_version")
    missing = [name for name in needed if not isinstance(checkpoint, dict) or name not in checkpoint]
    if missing:
        raise ValueError(
            f"{path} is no checkpoint of a Trainer: it lacks {' and '.join(missing)}. Expected what "
            "trainer.save_checkpoint or ModelCheckpoint writes; load weights alone with load_state_dict in Python."
        )
    return dict(checkpoint)
