"""The command line's parser: jsonargparse's, with messages of a line or two."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator
from typing import Any, NoReturn, get_args, get_type_hints

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser

from lightning_estimators.commandline.settings import find_class, options
from lightning_estimators.modules import EstimatorModule

__all__ = ["Parser"]


class Parser(LightningArgumentParser):
    """Says what was given, what is accepted, and little else.

    jsonargparse reports a mistake deep inside an option once per type it tried, after a hundred lines of usage. The
    essence is taken from its report where that is recognised; otherwise the report is shown as it is.
    """

    def print_usage(self, file: Any = None) -> None:
        """Print one line; `--help` has the options."""
        print(f"usage: {self.prog.replace(' [options]', '')} [options]", file=file)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the essence of a message and exit with status 2."""
        # Parsers of nested classes raise instead, and theirs becomes part of the message of the outermost.
        known = list(self._option_string_actions)
        super().error(_essence(message, known) if self.exit_on_error else message, ex)


def _essence(message: str, words: list[str]) -> str:
    message = _first_alternatives(message)
    path = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    classes = re.findall(r"given class_path '([^']+)'", message)
    if path and classes and (found := re.search(rf"Option '([^']+)' is not accepted(?:{_MAKER})?", message)):
        name = found[1].split(".")[0]
        # What makes an optimizer or a scheduler is given its first argument, parameters or an optimizer, later.
        owner, known = (
            (found[2], options(_load(found[2]))[1:]) if found[2] else (classes[-1], options(_load(classes[-1])))
        )
        return (
            f"--{path}.{found[1]}: {owner.rsplit('.', 1)[-1]} has no option {name!r}.{_guess(name, known)} "
            f"It has: {', '.join(known) or 'none'}."
        )
    if path and (found := re.search(r"the following arguments are required: (\w+)(.*)", message)):
        maker = re.search(rf"callable class: {found[0]}(?:.*\n)+?.*{_GIVEN}", message)
        owner = maker[1] if maker else classes[-1] if classes else path
        return (
            f"--{path}: {owner.rsplit('.', 1)[-1]} needs a value for {found[1]}{found[2]}; "
            f"give it with --{path}.{found[1]}."
        )
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        known = _class_names(path, classes)
        if known:
            return (
                f"--{path}: there is no {found[1]!r}.{_guess(found[1], known)} Expected one of {', '.join(known)}; or "
                "the full path of a class, such as my_project.MyClass."
            )
    if path and (found := re.search(r"Expected a (.+?)\. Got value: (.+)", message)):
        return f"--{path}: expected {_kind(found[1])}, got {found[2]!r}."
    if path:
        kinds = re.findall(r"- Expected an? (<class '(?!NoneType).+)", message)
        values = re.findall(r"Given value: (?!NestedArg|Namespace)(.+)", message)
        if kinds and values:
            return f"--{path}: expected {' or '.join(map(_kind, dict.fromkeys(kinds)))}, got {values[0]!r}."
        # Whatever else went wrong with the innermost of the classes, without the report on None and on the outer ones.
        lines = (re.sub(r'^Parser key "[^"]*": ', "", line.strip(" -")) for line in message.splitlines())
        told = [line for line in lines if not _NOISE.match(line)]
        where = f"--{path}: {classes[-1].rsplit('.', 1)[-1]}: " if classes else f"--{path}: "
        return where + "; ".join(dict.fromkeys(told)) if any(told) else message
    if found := re.fullmatch(r"unrecognized arguments: (.+)", message):
        misspelt = (re.split(r"[ =]", word)[0] for word in re.findall(r"--\S+", found[1]))
        guesses = "".join(dict.fromkeys(_guess(word, words) for word in misspelt))
        listed = "Options are listed by --help, those of a class by e.g. --model.help DiscreteLatentModel."
        return f"{message}.{guesses} {listed}"
    return message


_GIVEN = r"Given value: Namespace\(class_path='([^']+)'"
_MAKER = r"\. Got value: Namespace\(class_path='([^']+)'"
_NOISE = re.compile(
    r"$|Expected a path but|Parser key \"[^\"]*\":$|Does not validate against|Subtypes:|Errors:$|"
    r"Expected a <class 'NoneType'>$|Given value|Problem with given class_path '[^']*':$"
)


def _first_alternatives(message: str) -> str:
    """Leave out what is said of a class where another has been tried already, as one of a list and as itself."""
    kept: list[str] = []
    tried: set[int] = set()
    left_out: int | None = None
    for line in message.splitlines():
        indent = len(line) - len(line.lstrip())
        if left_out is not None and (indent > left_out or not line.strip()):
            continue
        left_out = None
        if line.lstrip().startswith("- Problem with given class_path"):
            if indent in tried:
                left_out = indent
                continue
            tried.add(indent)
        kept.append(line)
    return "\n".join(kept)


def _kind(text: str) -> str:
    kind = re.sub(r"<class '([\w.]+)'>", r"\1", text)
    choices = re.fullmatch(r"typing\.Literal\[(.+)\]", kind)
    return f"one of {choices[1]}" if choices else kind.replace("collections.abc.", "")


def _guess(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _load(class_path: str) -> type:
    found = find_class(class_path)
    return object if found is None else found


def _parts(hint: Any) -> Iterator[Any]:
    """The hint and what it is made of, such as what a callable returns."""
    yield hint
    for argument in get_args(hint):
        yield from _parts(argument)


def _class_names(path: str, classes: list[str]) -> list[str]:
    """Names of the classes that the option at a dotted path accepts, so far as they are imported."""
    bases: tuple[Any, ...]
    if path in ("model", "data"):
        bases = (EstimatorModule if path == "model" else LightningDataModule,)
    elif classes or path.startswith("trainer."):
        owner = _load(classes[-1]) if classes else Trainer
        name = path.rpartition(".")[2]
        # What a constructor passes on as keywords is among the hints of a base class.
        hints = (get_type_hints(cls.__init__).get(name) for cls in owner.__mro__)  # type: ignore[misc]
        bases = tuple(_parts(next((hint for hint in hints if hint is not None), None)))
    else:
        return []
    names: set[str] = set()
    pending = [base for base in bases if inspect.isclass(base) and base.__module__ != "builtins"]
    while pending:
        base = pending.pop()
        pending += base.__subclasses__()
        if not inspect.isabstract(base) and not base.__name__.startswith("_") and base not in bases:
            names.add(base.__name__)
    return sorted(names)
