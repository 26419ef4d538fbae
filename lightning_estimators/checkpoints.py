"""Reading checkpoints that may come from a stranger: plain data only, and no class but those that belong there."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import fsspec
import torch
import yaml
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["TRUSTED_PACKAGES", "check_classes", "class_paths", "hyper_parameters", "imported_class", "read_checkpoint"]

TRUSTED_PACKAGES = frozenset({"lightning_estimators", "lightning", "torch", "torchmetrics", "torchvision"})
"""Packages that are imported because a checkpoint says so."""

_BASES = (nn.Module, LightningDataModule, Optimizer, LRScheduler)  # estimators, baselines, models are nn.Modules


def read_checkpoint(path: Any, *, weights_only: bool = True) -> dict[str, Any]:
    """Return what a Trainer saved.

    Args:
        path: Path, URL or open file.
        weights_only: Whether to refuse anything but plain data, as in `torch.load`. Without it a checkpoint can run
            any program.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a checkpoint, or is damaged, or holds more than plain data.
    """
    position = path.tell() if hasattr(path, "seek") else None
    try:
        if "://" in str(path):
            with fsspec.open(str(path), "rb") as file:
                checkpoint = torch.load(file, map_location="cpu", weights_only=weights_only)
        else:
            # With `mmap` the weights stay on disk.
            mmap = {"mmap": True} if position is None and is_zipfile(path) else {}
            checkpoint = torch.load(path, map_location="cpu", weights_only=weights_only, **mmap)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file {path}.") from error
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        size = f" of {os.path.getsize(path)} bytes" if position is None and os.path.isfile(path) else ""
        raise ValueError(
            f"{path} is no checkpoint, or a damaged one, or holds more than plain data: expected what "
            f"trainer.save_checkpoint writes, got a file{size} that torch.load refuses: {reason} (Objects in a file "
            "that you trust are read with weights_only=False, --weights_only false.)"
        ) from error
    finally:
        if position is not None:
            path.seek(position)
    needed = ("state_dict", "pytorch-lightning_version")
    missing = [name for name in needed if not isinstance(checkpoint, dict) or name not in checkpoint]
    if missing:
        raise ValueError(
            f"{path} is no checkpoint of a Trainer: it lacks {' and '.join(missing)}. Expected what "
            "trainer.save_checkpoint or ModelCheckpoint writes; load weights alone with load_state_dict in Python."
        )
    for name, kind in _KINDS.items():
        if name in checkpoint and not isinstance(checkpoint[name], kind):
            raise ValueError(
                f"{path} is a damaged checkpoint: {name!r} in it must be of class {kind.__name__}, got "
                f"{type(checkpoint[name]).__name__}. Expected what trainer.save_checkpoint or ModelCheckpoint writes."
            )
    version = checkpoint["pytorch-lightning_version"]
    if not re.match(r"([2-9]|\d\d+)\.\d", version):
        raise ValueError(f"{path} was not saved by Lightning 2.0 or later, but by version {version!r}.")
    return dict(checkpoint)


_KINDS = {
    "state_dict": Mapping,
    "pytorch-lightning_version": str,
    "hyper_parameters": Mapping,
    "datamodule_hyper_parameters": Mapping,
    "lightning_estimators": Mapping,
    "callbacks": Mapping,
    "loops": Mapping,
    "optimizer_states": list,
    "lr_schedulers": list,
    "epoch": int,
    "global_step": int,
}
"""What the parts of a checkpoint are, as far as they are read."""


def class_paths(value: Any) -> Iterator[str]:
    """Find the class paths in a configuration: under `class_path` or `_class_path`, at any depth.

    Example:
        >>> list(class_paths({"_class_path": "my.Model", "estimator": [{"class_path": "my.Estimator"}]}))
        ['my.Model', 'my.Estimator']
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key in ("class_path", "_class_path") and item is not None:
                yield str(item)
            else:
                yield from class_paths(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from class_paths(item)


def imported_class(path: str) -> type | None:
    """Return the class with this import path if its module has been imported; import nothing."""
    module, _, name = str(path).rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) else None


def hyper_parameters(cls: type, checkpoint: dict[str, Any], hparams_file: str | Path | None) -> dict[str, Any]:
    """Return the hyper-parameters from which Lightning builds a module or data module: of the file, if there is one.

    Args:
        cls: The class, a `HyperparametersMixin`.
        checkpoint: As `read_checkpoint` returns it.
        hparams_file: A file with hyper-parameters to use instead of those in the checkpoint, or None.
    """
    if hparams_file is not None and str(hparams_file).endswith(("yaml", "yml")):
        return yaml.safe_load(Path(hparams_file).read_text()) or {}
    return dict(checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY) or {})  # type: ignore[attr-defined]  # of the mixin


def check_classes(configuration: Any, trusted: Collection[str] = ()) -> None:
    """Raise unless building what a checkpoint describes runs nothing but what modules and optimizers are made of.

    A class path must name a module, data module, optimizer or scheduler; never a function, which could be `os.system`.
    Nothing is imported for it unless it belongs to `TRUSTED_PACKAGES`, has been imported already, or is trusted. The
    same holds for any other text that could be taken for the path of a function, and for the ids of environments that
    name what is to be imported first ("my_package:MyEnv-v0"); a path may also be that of a class of environments.

    Args:
        configuration: Arguments as a checkpoint keeps them.
        trusted: Names of further packages that may be imported; "*" for all.

    Raises:
        ValueError: Naming what is not acceptable, and what to do if it should be.
    """
    paths = set(class_paths(configuration))
    for path in sorted(paths):
        found = _resolve(path, trusted)
        if not (isinstance(found, type) and issubclass(found, _BASES)):
            raise ValueError(
                f"the checkpoint names {path} as a class to build, and it is no module, data module, optimizer or "
                "scheduler: it could run anything. Do not use this checkpoint unless you know who made it."
            )
    for text in sorted(set(_texts(configuration)) - paths):
        if (environment := re.fullmatch(r"([^\W\d][\w.]*):(?!//)\S+", text)) and _is_module(environment[1]):
            _check_trusted(text, environment[1], trusted)  # gymnasium imports what stands before the colon
        if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", text) and _is_module(text):
            found = _resolve(text, trusted, missing=None)
            acceptable = isinstance(found, type) and issubclass(found, (*_BASES, *_environments()))
            if callable(found) and not acceptable and text.partition(".")[0] not in TRUSTED_PACKAGES:
                raise ValueError(
                    f"the checkpoint names {text}, which could run anything. Do not use this checkpoint unless you "
                    "know who made it."
                )


_NOT_GIVEN = object()


def _resolve(path: str, trusted: Collection[str], missing: Any = _NOT_GIVEN) -> Any:
    """The object at an import path."""
    module, _, name = path.rpartition(".")
    _check_trusted(path, module, trusted)
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        if missing is not _NOT_GIVEN:
            return missing
        raise ValueError(
            f"the checkpoint names {path}, which does not exist here. If the class has moved, say where it is now: "
            "--model new_project.Model, or Model.load_from_checkpoint(...)."
        ) from error


def _check_trusted(path: str, module: str, trusted: Collection[str]) -> None:
    """Raise unless a module may be imported for a path in a checkpoint."""
    package = module.partition(".")[0]
    if not (package in TRUSTED_PACKAGES or package in sys.modules or package in trusted or "*" in trusted):
        raise ValueError(
            f"the checkpoint names {path}, and {package or path!r} is neither part of torch, Lightning or this package "
            f"nor imported yet. If you trust it, import {package or path} first; on the command line name the class "
            "(--model my_project.MyModel), or trust all that the checkpoint names with --trust_checkpoint true."
        )


def _environments() -> tuple[type, ...]:
    """What environments of reinforcement learning are made of, if gymnasium is in use."""
    return (sys.modules["gymnasium"].Env,) if "gymnasium" in sys.modules else ()


def _is_module(path: str) -> bool:
    """Whether the first part of a dotted text is a module, imported or not; a folder of data is none."""
    package = path.partition(".")[0]
    if package in sys.modules:
        return True
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
