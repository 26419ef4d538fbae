"""Reading a few settings before the parser does."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

__all__ = ["Settings", "peek", "same_class"]

Settings = dict[str, Any]
"""Values by dotted name, without `class_path` and `init_args`."""


def peek(given: Any, subcommands: tuple[str, ...]) -> tuple[str | None, Settings]:
    """Read the few settings that decide on the defaults of all others, by dotted name, the last word winning."""
    settings: Settings = {}
    if isinstance(given, (dict, Namespace)):
        given = given.as_dict() if isinstance(given, Namespace) else given
        subcommand = given.get("subcommand")
        return subcommand, dict(_flatten(given.get(subcommand, {})))
    words = iter(given)
    subcommand = None
    for word in words:
        name, equals, value = str(word).partition("=")
        if subcommand is None and word in subcommands:
            subcommand = word
        if not name.startswith("-"):
            continue
        value = value if equals else next(words, "")
        if name in ("-c", "--config"):
            loaded = _load_yaml(value)
            settings |= dict(_flatten(loaded))
            for inner in subcommands:
                settings |= dict(_flatten(loaded.get(inner) or {})) if inner == (subcommand or inner) else {}
        elif name.startswith("--"):
            settings[name[2:].replace(".init_args.", ".").removesuffix(".class_path")] = value
    return subcommand, settings


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


def same_class(name: Any, class_path: str) -> bool:
    """Whether a class given by name, by path or in a file is (to judge by its name) the one at this path."""
    if isinstance(name, str) and os.path.isfile(name):
        name = _load_yaml(name).get("class_path", class_path)
    return str(name).rpartition(".")[2] == class_path.rpartition(".")[2]
