"""The command line's parser: jsonargparse's, with a default job, and messages of one line."""

from __future__ import annotations

import difflib
from inspect import signature
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace, get_loader, set_loader, set_parsing_settings
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_estimators.checkpoints import imported_class
from lightning_estimators.commandline.words import meant

__all__ = ["Parser"]

_MOST_VALUES = 100_000  # in one configuration


class Parser(LightningArgumentParser):
    """Starts from a job, which environment variables, configuration files and options change, in this order.

    Attributes:
        job: Options by name, nested as in a configuration file. Unlike the defaults of jsonargparse these hold only
            what somebody wrote, so that a class that replaces another gets no defaults of that one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.job: dict[str, Any] = {}
        super().__init__(*args, **kwargs)

    def get_defaults(self, *args: Any, **kwargs: Any) -> Namespace:
        """Return the defaults with the job in them."""
        defaults = super().get_defaults(*args, **kwargs)
        for name, value in self.job.items():
            defaults[name] = _as_parsed(value)
        return defaults

    def show_job(self) -> None:
        """Let `--help` show model and data of the job, and configuration files leave out their classes."""
        shown = {name: value for name, value in self.job.items() if name in ("model", "data")}
        self.set_defaults({name: value for name, value in shown.items() if imported_class(value["class_path"])})

    def print_usage(self, *args: Any) -> None:
        """Print nothing: a hint at `--help` follows."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print a message of one line: without the types that were tried and do not matter, with what was meant."""
        if self.exit_on_error:
            lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
            message = " ".join(line for line in lines if line and not line.startswith(_NOISE))
            close = self._meant(message) if ex is not None or message.startswith("unrecognized") else []
            message += f" Did you mean {' or '.join(close)}?" if close else ""
        super().error(message, ex)

    def _meant(self, message: str) -> list[str]:
        """Names of options and classes that misspelt words of the command line may have been meant for."""
        pending: list[type] = [nn.Module, LightningDataModule, Optimizer, LRScheduler, Callback, Logger]
        for cls in pending:  # grows
            pending += cls.__subclasses__()
        owners = [owner for part in message.split("'") if "." in part and (owner := imported_class(part))]
        makers = [vars(base)["__init__"] for owner in owners for base in owner.__mro__ if "__init__" in vars(base)]
        known = {name for maker in makers for name in signature(maker).parameters}
        known |= {f"--{name}" for name in self.get_defaults().keys()}  # noqa: SIM118  # it is no dictionary
        classes = {cls.__name__ for cls in pending}
        typed = {part for word in getattr(self, "args", []) for part in (word, *word.partition("=")[::2])}
        typed |= {word.rpartition(".")[2] for word in typed if word.startswith("--")}
        misspelt = [word for word in typed - known - classes if word and word in message]
        names = {word: known | classes if word[0].isupper() else known for word in misspelt}
        return sorted({near for word in misspelt for near in difflib.get_close_matches(word, names[word], 1, 0.8)})


_NOISE = (
    *("Does not validate against", "Subtypes: ", "Errors:", "Expected a path but", "Expected a <class 'NoneType'>"),
    *("Given value type: ", "Given value: NestedArg", "Given value: Namespace"),
)


def _as_parsed(value: Any) -> Any:
    """A class and its arguments in the form in which the parser has them."""
    if isinstance(value, dict) and "class_path" in value:
        arguments = {name: _as_parsed(item) for name, item in (value.get("init_args") or {}).items()}
        return Namespace({"class_path": value["class_path"], "init_args": Namespace(arguments)})  # type: ignore[no-untyped-call]  # jsonargparse has no types
    return [_as_parsed(item) for item in value] if isinstance(value, list) else value


def _load_yaml(text: str) -> Any:
    """Load YAML with its classes' full names; not one whose aliases repeat it into more than a machine can hold."""
    loaded = _yaml(text)
    pending, count = [loaded], 0
    while pending:
        value = pending.pop()
        count += 1
        if count > _MOST_VALUES:
            raise yaml.YAMLError(f"more than {_MOST_VALUES} values, or an alias inside what it stands for.")
        if isinstance(value, dict) and "class_path" in value:
            value["class_path"] = meant(str(value["class_path"]))
            options = value.get("init_args") or {}
            if not isinstance(options, dict):
                raise yaml.YAMLError(f"init_args of {value['class_path']} are not options by name: {options}")
        if isinstance(value, dict | list):
            pending.extend(value.values() if isinstance(value, dict) else value)
    return loaded


set_parsing_settings(import_path_denylist=[])  # enforce jsonargparse's own list of what no option may name
_yaml = get_loader("yaml")
set_loader("yaml", _load_yaml, (yaml.YAMLError,))
