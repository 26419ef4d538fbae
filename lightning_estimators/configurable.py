"""Objects that remember how they were built, so that a checkpoint can build them again."""

from __future__ import annotations

import copy
import functools
import inspect
import numbers
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_estimators.arguments import CheckedArguments

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Configurable", "Unrecorded", "encode", "import_path", "unrecorded"]


@dataclass(frozen=True)
class Unrecorded:
    """Stands in a configuration for a value that cannot be written down.

    Attributes:
        what: Words for what the value was, such as its class.
    """

    what: str


class Configurable(CheckedArguments):
    """Mixin that checks and records the constructor call of every instance, subclasses' included.

    Inherit it before the other bases: `class MyNetwork(Configurable, nn.Module)`. Nothing else is needed. Arguments are
    written down when the object is built (later changes of a list that was passed do not matter), as plain values that
    survive `torch.load(weights_only=True)`, `deepcopy` and pickling. Another `Configurable` among them is written down
    as its own configuration, a class or function as its import path, `functools.partial(Adam, lr=0.1)` as class path
    and arguments. What has no such form (a lambda, a plain `nn.Module`) becomes `Unrecorded`.

    Example:
        >>> from torch import nn
        >>> from lightning_estimators.configurable import Configurable
        >>> class Affine(Configurable, nn.Linear):
        ...     pass
        >>> Affine(2, out_features=3).configuration()["init_args"]
        {'in_features': 2, 'out_features': 3, 'bias': True}
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Record the call; `__new__` sees it once and whole, however many constructors call one another."""
        self = super().__new__(cls, *args, **kwargs)
        self.__dict__["_init_args"] = _call_arguments(cls, args, kwargs)
        return self

    def configuration(self) -> dict[str, Any]:
        """What builds an equal object: `{"class_path": ..., "init_args": {...}}`, in jsonargparse's form."""
        path = import_path(type(self))
        recorded = copy.deepcopy(self.__dict__["_init_args"])
        return {"class_path": path or Unrecorded(_describe(self)), "init_args": recorded}


def import_path(value: Any) -> str | None:
    """Return the shortest public path under which a class or function can be imported, None when there is none.

    The shortest re-export in a parent package is what stays valid when files move inside the package.

    Example:
        >>> import_path(torch.optim.Adam)
        'torch.optim.Adam'
    """
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if not module or not name.isidentifier():
        return None
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        candidate = ".".join(parts[:length])
        # What a module makes up when it is asked (`__getattr__`) is no re-export: it may load whole libraries.
        if candidate in sys.modules and vars(sys.modules[candidate]).get(name) is value:
            return f"{candidate}.{name}"
    return None


def encode(value: Any) -> Any:
    """Write a value down as plain data, with `Unrecorded` for whatever has no such form."""
    if value is None or isinstance(value, (bool, torch.dtype, Unrecorded)):
        return value
    if isinstance(value, Configurable):
        return value.configuration()
    if isinstance(value, Enum):
        return value.name
    # Exact types: subclasses such as NumPy's float64 are refused by torch.load(weights_only=True).
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, (str, PathLike)):
        return str(value)
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(map(encode, value)) if isinstance(value, tuple) else [encode(item) for item in value]
    if isinstance(value, functools.partial):
        made = _made_class(value)
        path = import_path(made)
        return {"class_path": path, "init_args": encode(value.keywords)} if path else Unrecorded(_describe(made))
    if isinstance(value, type) or inspect.isfunction(value) or inspect.isbuiltin(value):
        return import_path(value) or Unrecorded(_describe(value))
    return Unrecorded(_describe(value))


def unrecorded(value: Any, path: str = "") -> Iterator[tuple[str, Unrecorded]]:
    """Find every `Unrecorded` inside an encoded value, with its dotted path.

    Example:
        >>> list(unrecorded({"estimator": {"surrogate": Unrecorded("MyNet")}}))
        [('estimator.surrogate', Unrecorded(what='MyNet'))]
    """
    if isinstance(value, Unrecorded):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            plain = key in ("class_path", "init_args")
            yield from unrecorded(item, path if plain else f"{path}.{key}".lstrip("."))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from unrecorded(item, f"{path}[{index}]")


def _call_arguments(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        bound = inspect.signature(cls.__init__).bind(None, *args, **kwargs)  # type: ignore[misc]
    except TypeError:
        # Unpickling calls `__new__` bare and restores the record afterwards; a wrong call fails in `__init__`.
        return {}
    given = list(bound.arguments)[1:]
    bound.apply_defaults()
    recorded: dict[str, Any] = {}
    for name, parameter in list(bound.signature.parameters.items())[1:]:
        value = bound.arguments[name]
        if parameter.kind is parameter.VAR_KEYWORD:
            recorded.update(encode(value))
        elif parameter.kind is parameter.VAR_POSITIONAL:
            if value:
                recorded[name] = Unrecorded("positional arguments without names")
        elif name in given:
            recorded[name] = encode(value)
        elif value is not None:
            # Defaults are kept, so that a checkpoint outlives their change; unless they cannot be, or say nothing.
            written = encode(value)
            if not any(unrecorded(written)):
                recorded[name] = written
    return recorded


def _made_class(factory: functools.partial[Any]) -> Any:
    if isinstance(factory.func, type) and not factory.args:
        return factory.func
    # What jsonargparse hands over for `Callable[..., SomeClass]`: a partial of a function of its own, the class behind.
    if factory.args and isinstance(factory.args[-1], type) and factory.func.__module__.startswith("jsonargparse"):
        return factory.args[-1]
    return factory


def _describe(value: Any) -> str:
    kind = value if isinstance(value, type) or inspect.isfunction(value) else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"
