"""What a cost depends on: the modules that a function uses, and the tensors behind its value."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from torch import Tensor, nn

__all__ = ["leaves_of", "modules_of"]

_LIBRARIES = {"builtins", "torch", "numpy", "lightning", "collections", "functools", "operator", "math"}


def modules_of(f: Any) -> list[nn.Module]:
    """Return the modules that a function uses: itself, and what it is bound to or closed over, however deep.

    Followed are functions, methods, `functools.partial`, lists, tuples, dictionaries, and objects with attributes, but
    for those of libraries.
    """
    found: list[nn.Module] = []
    seen: dict[int, Any] = {}  # values are kept alive, so that no two have one identity
    todo = [f]
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, nn.Module):
            found.append(value)
        else:
            todo += _inside(value)
    return found


def _inside(value: Any) -> list[Any]:
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if inspect.ismethod(value):
        return [value.__self__, value.__func__]
    if isinstance(value, type | ModuleType | Tensor) or _is_of_a_library(value):
        return []
    if inspect.isfunction(value):
        variables = inspect.getclosurevars(value)
        return [*variables.nonlocals.values(), *variables.globals.values()]
    return list(vars(value).values()) if hasattr(value, "__dict__") else []


def _is_of_a_library(value: Any) -> bool:
    made = value if inspect.isroutine(value) else type(value)
    return str(getattr(made, "__module__", "")).partition(".")[0] in _LIBRARIES


def leaves_of(value: Tensor, stop: Sequence[Tensor]) -> list[Tensor]:
    """Return the leaves of the graph of a value, but for what lies behind some tensors."""
    ends = {p.grad_fn for p in stop if p.grad_fn is not None}
    kept = {id(p) for p in stop}
    found: dict[int, Tensor] = {}
    todo, seen = [value.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen or node in ends:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor) and id(leaf) not in kept:
            found[id(leaf)] = leaf
        todo.extend(parent for parent, _ in node.next_functions)
    return list(found.values())
