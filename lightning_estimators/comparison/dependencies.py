"""What a cost depends on: the modules that a function uses, and the tensors behind its value."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

__all__ = ["leaves_of", "modules_of"]


def modules_of(f: Any) -> Iterator[nn.Module]:
    """Yield the modules that a function uses: itself, what it is bound to, and what it is closed over."""
    if isinstance(f, nn.Module):
        yield f
    elif isinstance(f, functools.partial):
        for part in (f.func, *f.args, *f.keywords.values()):
            yield from modules_of(part)
    elif inspect.ismethod(f):
        yield from modules_of(f.__self__)
    elif inspect.isfunction(f):
        variables = inspect.getclosurevars(f)
        for value in (*variables.nonlocals.values(), *variables.globals.values()):
            if isinstance(value, nn.Module):
                yield value
    else:
        yield from (
            (value for value in vars(f).values() if isinstance(value, nn.Module)) if hasattr(f, "__dict__") else ()
        )


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
