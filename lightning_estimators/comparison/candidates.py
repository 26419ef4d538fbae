"""Estimators that may take the place of others: which there are, what they are called, and where they fit."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

import lightning_estimators.estimators
from lightning_estimators.baselines import LeaveOneOut
from lightning_estimators.configurable import Configurable, encode, import_path
from lightning_estimators.distributions import distribution_parameters
from lightning_estimators.estimators import GradientEstimator

__all__ = ["Candidate", "Place", "describe", "exchanges", "in_one_line", "known_estimators"]


@dataclass(frozen=True)
class Place:
    """Where an estimator is called.

    Attributes:
        own: The estimator that the module has there, if there is a module.
        q: A distribution like those it is called with, without a graph.
        context: A context like those it is called with.
        batch_dims: How many of the last batch axes of q are there whatever estimators do around it: those that are
            nested in another get axes of that one's samples on the left.
    """

    own: GradientEstimator | None
    q: Distribution
    context: Tensor | None
    batch_dims: int


@dataclass
class Candidate:
    """Copies of estimators, one for each place, that are measured together.

    Attributes:
        name: Unique among the candidates of a comparison.
        estimators: By place, all of them.
        exchanged: The places at which the estimator is not the module's own; all for what the module has.
        current: Whether it is what the module has.
        refused: Why it cannot be measured, or None.
        claims_unbiased: Whether all its estimators say so.
        evaluations: Of f and of its gradient, summed over the places that were exchanged.
        peak_bytes: See `Row`; so are the next two.
        learning_steps: Steps it had to learn.
        learning_curve: Steps and variances.
        seconds: Of each draw.
        spent: Seconds spent on measuring it, all told.
    """

    name: str
    estimators: dict[str, GradientEstimator]
    exchanged: list[str]
    current: bool = False
    refused: str | None = None
    claims_unbiased: bool = False
    evaluations: tuple[int, int] | None = None
    peak_bytes: float = float("nan")
    learning_steps: int = 0
    learning_curve: list[tuple[int, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    spent: float = 0.0

    def parameters(self) -> list[nn.Parameter]:
        """Return what it learns."""
        found = (p for estimator in self.estimators.values() for p in estimator.parameters() if p.requires_grad)
        return list(dict.fromkeys(found))

    def learns(self) -> bool:
        """Whether it changes by being used: by parameters of its own, or by running statistics."""
        return bool(self.parameters()) or any(
            buffer.is_floating_point() for estimator in self.estimators.values() for buffer in estimator.buffers()
        )

    def ask(self, places: Mapping[str, Place]) -> None:
        """Keep what its estimators say of themselves."""
        self.claims_unbiased = all(bool(e.is_unbiased(places[path].q)) for path, e in self.estimators.items())
        counts = [self.estimators[path].evaluations(places[path].q) for path in self.exchanged]
        self.evaluations = sum(values for values, _ in counts), sum(gradients for _, gradients in counts)

    def classes(self) -> set[type]:
        """Return the classes of what was exchanged."""
        return {type(self.estimators[path]) for path in self.exchanged}


def exchanges(
    estimator: GradientEstimator,
    places: Mapping[str, Place],
    exchange: Literal["all", "each"],
    *,
    only_fitting: bool,
) -> Iterator[Candidate]:
    """Yield what is to be measured of an estimator, each on copies.

    Args:
        estimator: To take the place of others.
        places: By path.
        exchange: "all" for one candidate, which has it at every place that it fits; "each" for one per place.
        only_fitting: Whether to leave out what fits nowhere, instead of saying why.
    """
    name = describe(estimator)
    for targets in [list(places)] if exchange == "all" else [[path] for path in places]:
        copies: dict[str, GradientEstimator] = {}
        reasons: dict[str, str] = {}
        for path in targets:
            try:
                copies[path] = _copy_for(estimator, places[path])
            except Exception as error:  # whatever a plug-in raises costs its own row only
                reasons[path] = in_one_line(error)
        if not copies and only_fitting:
            continue
        where = f" at {', '.join(copies or targets)}" if 0 < len(copies or targets) < len(places) else ""
        refused = None if copies else next(iter(reasons.values()))
        kept = {p: copy.deepcopy(place.own) for p, place in places.items() if p not in copies and place.own is not None}
        in_order = {path: (copies | kept)[path] for path in places if path in copies | kept}
        yield Candidate(name + where, in_order, list(copies), refused=refused)


def _copy_for(estimator: GradientEstimator, place: Place) -> GradientEstimator:
    made = copy.deepcopy(estimator)
    objective = GradientEstimator if place.own is None else type(place.own)
    if type(made).combine is not objective.combine:
        raise ValueError(
            f"{type(made).__name__} optimises another objective than {'the mean cost' if place.own is None else 'this'}"
            f"{'' if place.own is None else f' module, whose {type(place.own).__name__} says what it is'}."
        )
    if objective.combine is not GradientEstimator.combine and made.num_samples != getattr(place.own, "num_samples", 1):
        raise ValueError("the objective depends on num_samples, which must be that of the module's own estimator.")
    parameter = next(iter(distribution_parameters(place.q).values()))
    made.to(parameter.device, torch.float64 if parameter.dtype == torch.float64 else None)
    made.train()
    if place.own is not None:
        made.allow_coupled_costs = place.own.allow_coupled_costs
    made.prepare(place.q, place.context)
    return made


def describe(estimator: Configurable) -> str:
    """Return the class and the settings that differ from its defaults.

    Example:
        >>> from lightning_estimators.estimators import REINFORCE
        >>> describe(REINFORCE(LeaveOneOut(), num_samples=4))
        'REINFORCE(baseline=LeaveOneOut(), num_samples=4)'
    """
    given = estimator.configuration()["init_args"]
    signature = inspect.signature(type(estimator).__init__)
    shown = []
    for name, value in given.items():
        default = signature.parameters[name].default if name in signature.parameters else inspect.Parameter.empty
        part = getattr(estimator, name, None)
        if isinstance(value, Tensor) or encode(default) != value:
            shown.append(f"{name}={describe(part) if isinstance(part, Configurable) else _written(value)}")
    return f"{type(estimator).__name__}({', '.join(shown)})"


def _written(value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        return f"{str(value['class_path']).rpartition('.')[2]}(...)"
    what = getattr(value, "what", None)  # of something that cannot be written down
    return str(what).rpartition(".")[2] if what is not None else repr(value)


_SETTINGS: Sequence[dict[str, Any]] = (
    {"straight_through": True},
    {"temperature": 0.1},
    {"temperature": 1.0},
    {"num_changes": 4},
    {"num_changes": 16},
    {"coupling": "antithetic", "num_samples": 2},
    {"baseline": LeaveOneOut, "num_samples": 4},
)
"""Sensible settings beside the defaults, for every class whose constructor has arguments of all these names."""


def known_estimators() -> list[GradientEstimator]:
    """Return every estimator of the package, and those that the user has imported, by default and sensible settings.

    Classes that need arguments are left out.
    """
    classes: list[Any] = [GradientEstimator]
    for cls in classes:  # grows
        classes += [child for child in cls.__subclasses__() if child not in classes]
    known = [cls for cls in classes if _is_public(cls)]
    built = [make for cls in sorted(known, key=lambda cls: (not _is_ours(cls), cls.__name__)) for make in _built(cls)]
    return list({describe(estimator): estimator for estimator in built}.values())


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "lightning_estimators"


def _is_public(cls: type) -> bool:
    if inspect.isabstract(cls) or cls.__name__.startswith("_"):
        return False
    if _is_ours(cls):
        return getattr(lightning_estimators.estimators, cls.__name__, None) is cls
    return import_path(cls) is not None


def _built(cls: type[GradientEstimator]) -> Iterator[GradientEstimator]:
    parameters = inspect.signature(cls.__init__).parameters
    learned = getattr(parameters.get("learn_temperature"), "default", False)
    for settings in ({}, *_SETTINGS):
        if not settings.keys() <= parameters.keys() or ("temperature" in settings and learned):
            continue
        try:
            yield cls(**{name: value() if isinstance(value, type) else value for name, value in settings.items()})
        except (TypeError, ValueError):  # needs arguments, or refuses this combination
            continue


def in_one_line(error: BaseException) -> str:
    """Return what an error says, in one line, with its class unless it is a refusal."""
    words = " ".join(str(error).split())
    words = words if len(words) <= 240 else f"{words[:239]}…"
    refusal = isinstance(error, TypeError | ValueError) and words
    return words if refusal else f"{type(error).__name__}: {words}".rstrip(": ")
