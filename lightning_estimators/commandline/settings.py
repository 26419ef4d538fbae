"""Reading a few settings before the parser does, and what follows when a class is replaced by another."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_estimators.configurable import import_path

__all__ = ["Settings", "find_class", "for_named_classes", "options", "peek", "rewrite_files", "same_class"]

Settings = dict[str, Any]
"""Values by dotted name, without `class_path` and `init_args`; the value of a class is its name or path."""

_CONFIG = ("-c", "--config")


def peek(given: Any, subcommands: tuple[str, ...]) -> tuple[str | None, Settings]:
    """Return the subcommand, and the settings of configuration files and options, the last word winning."""
    settings: Settings = {}
    if isinstance(given, (dict, Namespace)):
        given = given.as_dict() if isinstance(given, Namespace) else given
        subcommand = given.get("subcommand")
        return subcommand, dict(_flatten(given.get(subcommand, {})))
    subcommand = next((word for word in given if word in subcommands), None)
    for name, value, _ in _options(given):
        if name in _CONFIG:
            loaded = _load_yaml(value)
            inner = loaded.get(subcommand) if subcommand else None
            settings |= dict(_flatten(loaded)) | dict(_flatten(inner if isinstance(inner, dict) else {}))
        else:
            settings[name[2:].replace(".init_args.", ".").removesuffix(".class_path")] = value
    return subcommand, settings


def rewrite_files(given: Any, settings: Settings) -> Any:
    """Return the words of the command line, with `for_named_classes` applied to the configuration files in them."""
    if isinstance(given, (dict, Namespace)):
        return given
    words = list(given)
    for name, value, index in _options(given):
        loaded = _load_yaml(value) if name in _CONFIG else {}
        rewritten = for_named_classes(loaded, settings)
        if rewritten != loaded:
            text = yaml.safe_dump(rewritten)
            words[index] = text if words[index] == value else f"{name}={text}"
    return words


def for_named_classes(tree: Settings, settings: Settings, *, prefix: str = "", keep: bool = True) -> Settings:
    """Put the classes that the settings name into a tree of options that names others at the same places.

    The parser would do it too, but it would give to the new class even those options of the old one that nobody wrote,
    because they have the same name: the defaults of REBAR to Concrete.

    Args:
        tree: Options, nested as in a configuration file.
        settings: Values by dotted name.
        prefix: Dotted name of the tree.
        keep: Whether the new class gets options of the old one that it has as well.
    """
    result: Settings = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            value = dict(value)
            named = settings.get(path)
            if "class_path" in value and isinstance(named, str) and not same_class(named, value["class_path"]):
                new = find_class(named)
                if new is not None:
                    shared = {k: v for k, v in (value.get("init_args") or {}).items() if keep and k in options(new)}
                    value = {"class_path": import_path(new) or named, "init_args": shared}
            inner = prefix if key in ("init_args", "fit", "validate", "test", "predict") else f"{path}."
            value = for_named_classes(value, settings, prefix=inner, keep=keep)
        result[key] = value
    return result


def same_class(name: Any, class_path: str) -> bool:
    """Whether a class given by name, by path or in a file is the one at this path."""
    if isinstance(name, str) and os.path.isfile(name):
        name = _load_yaml(name).get("class_path", class_path)
    if name == class_path:
        return True
    one, other = find_class(str(name)), find_class(class_path)
    if one is None or other is None:
        return str(name).rpartition(".")[2] == class_path.rpartition(".")[2]
    return one is other


def find_class(name: str) -> type | None:
    """Return the plug-in with this import path, or this name among those imported; None if there is none."""
    module, _, attribute = name.rpartition(".")
    if module:
        try:
            found = getattr(import_module(module), attribute, None)
        except Exception:  # the parser will say what is wrong with it
            return None
        return found if isinstance(found, type) else None
    pending: list[type] = [nn.Module, LightningDataModule, Optimizer, LRScheduler]
    while pending:
        candidate = pending.pop(0)
        if candidate.__name__ == attribute and import_path(candidate):
            return candidate
        pending += candidate.__subclasses__()
    return None


def options(cls: type) -> list[str]:
    """Names of the arguments of a class."""
    parameters = inspect.signature(cls).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _options(words: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """Each option's name and value, and the place of the value."""
    for index, word in enumerate(words):
        name, equals, value = str(word).partition("=")
        if not name.startswith("--") and name not in _CONFIG:
            continue
        if equals:
            yield name, value, index
        elif index + 1 < len(words) and not str(words[index + 1]).startswith("--"):
            yield name, words[index + 1], index + 1


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, prefix if key == "init_args" else f"{prefix}{key}.")
        elif key == "class_path":
            yield prefix.removesuffix("."), value
        else:
            yield f"{prefix}{key}", value


def _load_yaml(value: Any) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(Path(value).read_text() if os.path.isfile(value) else value)
    except (OSError, yaml.YAMLError):
        return {}  # the parser will say what is wrong with it
    return loaded if isinstance(loaded, dict) else {}
