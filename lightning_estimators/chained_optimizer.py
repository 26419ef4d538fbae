"""Several optimizers that a trainer sees as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["ChainedOptimizer"]


class ChainedOptimizer(Optimizer):
    """Steps several optimizers, each of a class and with settings of its own, as if they were one.

    A training loop that knows one optimizer (Lightning's automatic optimization, a gradient scaler, a learning-rate
    finder, a distributed checkpoint) works with it unchanged:

    - `param_groups` lists the very dictionaries of the parts, in the order in which they were added, so that whoever
      changes a learning rate there changes it in the part. Each has a `name`: that of its part if the part has one
      group, otherwise `part/number` or, where the group had a name, `part/name`.
    - `state` is a view of the parts' states, and `state_dict()` has torch's standard form with the parameters numbered
      through, so that it can be exchanged with one plain optimizer that has the same groups.
    - `step(closure)` evaluates the closure once, then steps every part without it. Under a `torch.amp.GradScaler` one
      gradient that is infinite skips all parts.
    - `add_param_group` gives a group to the part that its `name` begins with, and to the first part if it has none.
    - A learning-rate scheduler may hang on the whole, or on one part (`chained.parts["model"]`).
    - Hooks run once, whether they are registered here or on a part.

    Args:
        **parts: Optimizers by the name of the part; no parameter may be in two of them.

    Attributes:
        parts: The optimizers by name.

    Raises:
        ValueError: There is no part, two parts share a parameter, or a part cannot be chained: `LBFGS` evaluates the
            closure many times a step, and `ZeroRedundancyOptimizer` keeps its state on other processes.
        TypeError: A part is no optimizer.

    Example:
        >>> import torch
        >>> weight, temperature = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(()))
        >>> chained = ChainedOptimizer(
        ...     model=torch.optim.SGD([weight], lr=0.1), surrogate=torch.optim.Adam([temperature], lr=0.01)
        ... )
        >>> (weight.sum() * temperature).backward()
        >>> chained.step()
        >>> weight.tolist(), round(temperature.item(), 2)
        ([0.8999999761581421, 0.8999999761581421], 0.99)
        >>> [(group["name"], group["lr"]) for group in chained.param_groups]
        [('model', 0.1), ('surrogate', 0.01)]
    """

    parts: dict[str, Optimizer]

    def __init__(self, **parts: Optimizer) -> None:
        _check(parts)
        self.parts = {}  # what the base class initialises belongs to the parts, which have done so themselves
        first, *others = parts.values()
        common = {name: v for name, v in first.defaults.items() if all(name in other.defaults for other in others)}
        super().__init__([{"params": []}], common)
        self.parts = parts
        self._order = [name for name, part in parts.items() for _ in part.param_groups]  # whose each group is
        for name, part in parts.items():
            _name_groups(name, part)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts, in the order in which they were added."""
        groups = {name: iter(part.param_groups) for name, part in self.parts.items()}
        ordered = [next(groups[name]) for name in self._order]
        return ordered + [group for left in groups.values() for group in left]

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self._order = [self._part_of(group) for group in groups] if self.parts else []
        for name, part in self.parts.items():
            part.param_groups = [group for group, owner in zip(groups, self._order, strict=True) if owner == name]

    @property  # type: ignore[override]  # a dictionary in the base class
    def state(self) -> MutableMapping[Tensor, Any]:
        """The states of all parts by parameter; what is assigned to an entry goes to the part of the parameter."""
        return _StateOfParts(self.parts)

    @state.setter
    def state(self, state: Mapping[Tensor, Any]) -> None:
        for part in self.parts.values():
            own = {parameter for group in part.param_groups for parameter in group["params"]}
            part.state.clear()
            part.state.update({parameter: entry for parameter, entry in state.items() if parameter in own})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Evaluate the closure once, then step every part.

        Args:
            closure: Evaluates the loss and its gradient.

        Returns:
            The loss that the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts.values():
            part.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: FBT001  torch's signature
        """Clear the gradients of all parts."""
        for part in self.parts.values():
            part.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the part that its `name` begins with, and to the first part if it has none.

        Args:
            param_group: As in torch; what it does not say, the defaults of the part do.

        Raises:
            ValueError: A parameter is in a part already.
        """
        if not self.parts:  # called by the constructor of the base class
            return
        given = param_group["params"]
        added = {given} if isinstance(given, Tensor) else set(given)
        if added & {parameter for group in self.param_groups for parameter in group["params"]}:
            raise ValueError("expected a group of parameters that are in no part yet, got some that are.")
        name = self._part_of(param_group)
        self._order = [self._part_of(group) for group in self.param_groups] + [name]
        self.parts[name].add_param_group(param_group)
        _name_groups(name, self.parts[name])

    def __getstate__(self) -> dict[str, Any]:
        return {"parts": self.parts, "order": self._order}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take parts that were pickled or copied, or, as `load_state_dict` asks, the groups and states of all parts."""
        if "parts" in state:
            self.__init__(**state["parts"])  # type: ignore[misc]  # an unpickled object has not been built yet
            self._order = state["order"]
            return
        self._order = [self._part_of(group) for group in self.param_groups]
        for name, part in self.parts.items():
            own = [group for group, owner in zip(state["param_groups"], self._order, strict=True) if owner == name]
            for before, group in zip(part.param_groups, own, strict=True):
                group.setdefault("name", before["name"])  # a plain optimizer's groups have no names
            parameters = {parameter for group in own for parameter in group["params"]}
            entries = {parameter: entry for parameter, entry in state["state"].items() if parameter in parameters}
            kept = type(part.state)(dict) if hasattr(part.state, "default_factory") else type(part.state)()
            kept.update(entries)
            part.__setstate__({"state": kept, "param_groups": own})
            _name_groups(name, part)

    def _part_of(self, group: Mapping[str, Any]) -> str:
        name = str(group.get("name", "")).partition("/")[0]
        return name if name in self.parts else next(iter(self.parts))


class _StateOfParts(MutableMapping[Tensor, Any]):
    """The states of several optimizers as one mapping that can be written to."""

    def __init__(self, parts: Mapping[str, Optimizer]) -> None:
        self.parts = parts

    def __getitem__(self, parameter: Tensor) -> Any:
        for part in self.parts.values():
            if parameter in part.state:
                return part.state[parameter]
        raise KeyError(parameter)

    def __setitem__(self, parameter: Tensor, entry: Any) -> None:
        for part in self.parts.values():
            if any(parameter is own for group in part.param_groups for own in group["params"]):
                part.state[parameter] = entry
                return
        raise KeyError("expected a parameter of one of the parts, got a tensor that is in none.")

    def __delitem__(self, parameter: Tensor) -> None:
        for part in self.parts.values():
            if parameter in part.state:
                del part.state[parameter]
                return
        raise KeyError(parameter)

    def __iter__(self) -> Iterator[Tensor]:
        for part in self.parts.values():
            yield from part.state

    def __len__(self) -> int:
        return sum(len(part.state) for part in self.parts.values())


def _check(parts: Mapping[str, Any]) -> None:
    if not parts:
        raise ValueError("ChainedOptimizer needs at least one part, such as ChainedOptimizer(model=optimizer).")
    owner: dict[Tensor, str] = {}
    for name, part in parts.items():
        if not isinstance(part, Optimizer):
            raise TypeError(f"part {name!r} must be a torch.optim.Optimizer, got {part!r}.")
        if isinstance(part, torch.optim.LBFGS):
            raise ValueError(
                f"part {name!r} is LBFGS, which evaluates the loss many times per step, with other noise each time, "
                "and would train the other parts each time. Use an optimizer that needs one gradient per step."
            )
        if hasattr(part, "consolidate_state_dict"):
            raise ValueError(
                f"part {name!r} is {type(part).__name__}, whose state lies on several processes and cannot be chained. "
                "Use the optimizer it wraps, or shard with strategy=ModelParallelStrategy()."
            )
        for group in part.param_groups:
            for parameter in group["params"]:
                if parameter in owner:
                    raise ValueError(f"parts {owner[parameter]!r} and {name!r} share a parameter: it belongs to one.")
                owner[parameter] = name


def _name_groups(part_name: str, part: Optimizer) -> None:
    """Give every group of a part a name that begins with that of the part and that no other group has."""
    taken: set[str] = set()
    for index, group in enumerate(part.param_groups):
        given = str(group.get("name") or "")
        if given != part_name and not given.startswith(f"{part_name}/"):
            given = f"{part_name}/{given or index}" if given or len(part.param_groups) > 1 else part_name
        if given in taken:
            given = f"{part_name}/{index}"
        taken.add(given)
        group["name"] = given
