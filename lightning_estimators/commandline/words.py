"""The words of a command line, before they are parsed."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["CONFIGS", "arranged", "environment_as_words", "meant", "without_model_and_data"]

CONFIGS = Path(__file__).parents[1] / "configs"
"""Where the configuration files of the package are."""

_DESCRIBABLE = {
    "ReduceLROnPlateau": "lightning.pytorch.cli.ReduceLROnPlateau",
    "SequentialLR": "lightning_estimators.schedulers.SequentialSchedule",
    "ChainedScheduler": "lightning_estimators.schedulers.ChainedSchedule",
}
"""Schedulers of torch whose arguments a configuration cannot hold, and those that take their place."""


def meant(name: str) -> str:
    """Return the name of a class, or of the one that takes its place in configurations."""
    return _DESCRIBABLE.get(name.removeprefix("torch.optim.lr_scheduler."), name)


def arranged(words: Iterable[str], subcommands: Collection[str]) -> list[str]:
    """Return the words with the configuration files first, since the last word wins.

    A file that does not exist is looked for among those of the package.
    """
    files: list[str] = []
    options: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in ("-c", "--config") and (equals or (value := next(rest, ""))):
            files.append(f"--config={_found(value)}")
        elif word in subcommands and not options:
            files.append(word)  # those before it are for all subcommands
        else:
            options.append(f"{name}={meant(value)}" if equals else meant(word))
    return files + options


def without_model_and_data(words: Iterable[str]) -> list[str]:
    """Return the words but for options inside model and data, which only their classes know, and requests for help."""
    kept: list[str] = []
    left_out = False
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("--") or option == "-h":
            left_out = option.startswith(("--model.", "--data.", "--print_config")) or option.endswith(("-h", "help"))
        kept += [] if left_out else [word]
    return kept


@contextmanager
def environment_as_words(subcommand: str | None, *, enabled: bool) -> Iterator[list[str]]:
    """Yield options of model and data that environment variables give, as words, and hide the variables meanwhile.

    jsonargparse would neither find `PL_FIT__MODEL__ESTIMATOR`, which only the model's class knows, nor take the short
    name of a class in `PL_FIT__MODEL`.
    """
    prefix = f"PL_{subcommand.upper()}__" if subcommand else "PL_"
    names = [name for name in sorted(os.environ) if enabled and re.match(f"{prefix}(MODEL|DATA)(__|$)", name)]
    given = {name: os.environ[name] for name in names}
    for name in given:
        del os.environ[name]
    try:
        options = {name.removeprefix(prefix).lower().replace("__", "."): value for name, value in given.items()}
        yield [f"--{option}={meant(value)}" for option, value in options.items()]
    finally:
        os.environ.update(given)


def _found(config: str) -> str:
    candidates = (Path(config), Path(f"{config}.yaml"), CONFIGS / config, CONFIGS / f"{config}.yaml")
    try:
        return str(next((path for path in candidates if path.is_file()), config))
    except OSError:  # text in place of a file, too long for a name
        return config
