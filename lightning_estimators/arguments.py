"""One check of constructor arguments against their annotations, for all classes of the package and their like."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import math
import numbers
import os
import types
import typing
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["CheckedArguments", "check_arguments", "check_event_dim", "check_finite"]

_LARGEST = 2**63  # and more: integers that torch cannot hold
_SEVERAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)  # passed on, and checked there


class CheckedArguments:
    """Mixin that refuses constructor arguments whose type is not the annotated one.

    Nothing needs to be declared beside the annotations. A class or a function where an object is meant, a string where
    a number is meant, one number where several are: the message names the class, the argument, what it should be and
    what came. Numbers of any library pass for numbers, lists and tuples for one another; values (a range, a choice) are
    left to the constructor. An annotation that cannot be resolved is not checked.

    Example:
        >>> from lightning_estimators.networks import MLP
        >>> MLP(3, 7, 1)
        Traceback (most recent call last):
        TypeError: MLP: hidden must be a sequence of int, got 7 (int).
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Check the call before the constructor sees it."""
        check_arguments(cls, args, kwargs)
        return super().__new__(cls)


def check_arguments(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise unless every argument of a constructor call is of its annotated type.

    Raises:
        TypeError: One is of another type.
        ValueError: One is a number, but no integer where one is needed; or neither True nor False.
    """
    positional, hints, required, obvious = _signature(cls)
    given = dict(zip(positional, args, strict=False))
    for name, value in {**given, **kwargs}.items():
        if name not in hints or isinstance(value, obvious[name]):
            continue
        if type(value) is hints[name] and (type(value) is not int or abs(value) < _LARGEST):
            continue
        if _fits(value, hints[name]):
            continue
        if value is None and name in required and _is_filled_in(hints[name]):
            continue  # nothing was found to fill it in: constructors know where it comes from, and say so
        if _wants(hints[name], int) and isinstance(value, numbers.Real):
            raise ValueError(
                f"{cls.__name__} needs an integer {name} (a whole number of type int), got {_shown(value)}."
            )
        message = f"{cls.__name__}: {name} must be {_words(hints[name])}, got {_misfit(value, hints[name])}."
        raise ValueError(message) if _wants(hints[name], bool) else TypeError(message)


def check_finite(owner: object, **numbers: float | Tensor) -> None:
    """Raise unless numbers that were given are finite; tensors are not looked into.

    Args:
        owner: What they were given to.
        **numbers: By the name of the argument.

    Raises:
        ValueError: One is infinite or not a number.
    """
    for name, number in numbers.items():
        if not isinstance(number, Tensor) and not math.isfinite(number):
            raise ValueError(f"{type(owner).__name__} needs a finite {name}, got {number!r}.")


def check_event_dim(owner: object, event_dim: int) -> None:
    """Raise unless the last axes of z that are the event can be so many.

    Args:
        owner: The objective that they were given to.
        event_dim: How many.

    Raises:
        ValueError: It is negative.
    """
    if event_dim < 0:
        raise ValueError(f"{type(owner).__name__} needs an event_dim of at least 0, got {event_dim!r}.")


@functools.cache
def _signature(
    cls: type,
) -> tuple[tuple[str, ...], dict[str, Any], frozenset[str], dict[str, tuple[type, ...]]]:
    """Return names of positional arguments, annotations of those that have one, and names of those without default.

    With them, for each annotation, classes of which any object fits: most arguments pass by these, and objectives are
    built at every training step.
    """
    constructor = cls.__init__  # type: ignore[misc]  # of a class, not of an instance
    parameters = [p for p in list(inspect.signature(constructor).parameters.values())[1:] if p.kind not in _SEVERAL]
    try:
        hints = typing.get_type_hints(constructor)
    except Exception:  # an annotation that cannot be resolved is not worth an error
        hints = {}
    positional = tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)
    required = frozenset(p.name for p in parameters if p.default is p.empty)
    hints = {p.name: hints[p.name] for p in parameters if p.name in hints}
    return positional, hints, required, {name: tuple(_obvious(hint)) for name, hint in hints.items()}


def _obvious(hint: Any) -> Iterator[type]:
    """Yield classes of which any object is of an annotated type, whatever else may be."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for option in typing.get_args(hint):
            yield from _obvious(option)
    elif hint in (Tensor, str, bool, type(None)):
        yield hint


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; True for what cannot be told."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _fits(value, inner[0])
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in inner)
    if _is_callable(hint):
        made = inner[-1] if inner and isinstance(inner[-1], type) and inner[-1] is not Any else None
        return callable(value) and not (made and isinstance(value, made))  # an activation, say, instead of its class
    if _is_sequence(origin or hint):
        return _is_collection(value) and all(_fits(item, inner[0]) for item in value if inner)
    if origin is type:
        return isinstance(value, type)
    kind = origin or hint
    if kind is bool:
        return type(value).__name__ in ("bool", "bool_")
    if kind is int:
        return not isinstance(value, bool) and isinstance(value, numbers.Integral) and _is_number(value)
    if kind is float:
        return not isinstance(value, bool) and (_is_number(value) or isinstance(value, Tensor))
    if kind is None or kind is type(None):
        return value is None
    if not isinstance(kind, type) or typing.is_typeddict(kind) or getattr(kind, "_is_protocol", False):
        return True
    return isinstance(value, kind)


def _is_filled_in(hint: Any) -> bool:
    """Whether an argument is a size, which the command line may ask the data for."""
    return not isinstance(hint, type) and not _is_callable(hint)


def _is_callable(hint: Any) -> bool:
    return collections.abc.Callable in (hint, typing.get_origin(hint))


def _is_number(value: Any) -> bool:
    """Whether a value is a real number; an integer that torch cannot hold is none."""
    fits = not isinstance(value, int) or abs(value) < _LARGEST
    return fits and isinstance(value, numbers.Real)


def _is_sequence(kind: Any) -> bool:
    return isinstance(kind, type) and kind is not str and issubclass(kind, collections.abc.Sequence)


def _is_collection(value: Any) -> bool:
    """Whether a value can be gone through like a list: an array can, a string is one thing, and a set has no order."""
    kinds = (str, bytes, collections.abc.Mapping, collections.abc.Set)
    return isinstance(value, collections.abc.Collection) and not isinstance(value, kinds)


def _wants(hint: Any, kind: type) -> bool:
    """Whether nothing but an object of a kind, or None, is asked for."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return set(options) - {type(None)} == {kind}


def _words(hint: Any) -> str:
    """Describe a type as in a sentence."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _words(inner[0])
    if origin in (typing.Union, types.UnionType):
        words = " or ".join(_words(option) for option in inner)
        return words.replace("True or False or", "True, False or")
    if hint is None or hint is type(None):
        return "None"
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, inner))
    if _is_callable(hint):
        made = getattr(inner[-1], "__name__", "") if inner else ""
        return f"a class or function that makes {made}" if made else "a class or function"
    if _is_sequence(origin or hint):
        return "a sequence" + (f" of {_name(inner[0])}" if inner else "")
    if hint is bool:
        return "True or False"
    if hint in (int, float):
        return "an integer" if hint is int else "a number"
    if issubclass(origin or hint, (str, os.PathLike)):
        return f"a {_name(hint)}"
    return f"an object of class {_name(hint)}"


def _name(hint: Any) -> str:
    return str(getattr(hint, "__name__", hint))


def _misfit(value: Any, hint: Any) -> str:
    """Describe what came; of a sequence, the first entry that does not fit."""
    inner = typing.get_args(hint)
    if _is_sequence(typing.get_origin(hint)) and _is_collection(value):
        for index, item in enumerate(value):
            if not _fits(item, inner[0]):
                return f"{_given(item)} as entry {index}"
    return _given(value)


def _given(value: Any) -> str:
    """Describe what came, with the commonest mistakes named."""
    if isinstance(value, type):
        return f"the class {value.__name__} itself; build an object of it: {value.__name__}(...)"
    if inspect.isroutine(value):
        return f"the function {getattr(value, '__name__', value)}"
    return f"{_shown(value)} ({type(value).__name__})"


def _shown(value: Any) -> str:
    try:
        shown = repr(value)
    except ValueError:  # Python writes down no integers of more than some thousand digits
        return "a number too long to write down"
    return shown if len(shown) <= 60 else shown[:57] + "..."
