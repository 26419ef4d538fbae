"""The parameters of a distribution by name, and a copy of a distribution with other parameters."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from functools import singledispatch
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, OneHotCategorical
from torch.distributions.transforms import ExpTransform, Transform
from torch.distributions.utils import lazy_property

from lightning_estimators.private_api import categorical_of, is_given_by_probs, one_hot_of

__all__ = ["base_distribution", "check_no_hidden_parameters", "distribution_parameters", "rebuild"]

_arguments: dict[type[Distribution], list[str]] = {}

INVERSE = type(ExpTransform().inv)
"""The class of inverse transforms, which torch does not export under a name."""
KEPT_BY_TRANSFORMS = frozenset(vars(ExpTransform()))
"""The attributes that every transform has, such as its inverse and a cached point; none of them is a parameter."""

HOW_TO_REGISTER = (
    "Say what its parameters are and how it is rebuilt from them with @distribution_parameters.register and "
    "@rebuild.register (see lightning_estimators.distributions.rebuild)."
)


def base_distribution(q: Distribution) -> Distribution:
    """Return the distribution inside all `Independent` wrappers."""
    while isinstance(q, Independent):
        q = q.base_dist
    return q


@singledispatch
def distribution_parameters(q: Distribution) -> dict[str, Tensor]:
    """Return the parameters of q by name, attached to the graph; their shapes begin with `q.batch_shape`.

    For a distribution that has both `probs` and `logits`, these are the logits, whichever was given. Only if `probs`
    was given, and a probability is 0 or 1 up to rounding, where logits are not finite, it is the probabilities. Every
    call returns the same tensor objects (except for mixtures and transformed distributions), so gradients with respect
    to them can be computed.

    Args:
        q: Any distribution. For a class of your own, the parameters can be registered (see `rebuild`).

    Raises:
        TypeError: The class of q does not say what its parameters are.

    Example:
        >>> import torch
        >>> q = Independent(Bernoulli(probs=torch.full((2, 3), 0.5)), 1)
        >>> {name: tuple(p.shape) for name, p in distribution_parameters(q).items()}
        {'logits': (2, 3)}
    """
    try:
        constraints = q.arg_constraints
    except NotImplementedError:
        constraints = {}
    left_out = {"probs"} if "logits" in constraints else set()
    if isinstance(q, Bernoulli | Categorical | OneHotCategorical) and _is_at_the_edge(q):
        left_out = {"logits"}
    if "scale_tril" in constraints:  # a covariance has three parametrisations, of which one is enough
        left_out |= {"covariance_matrix", "precision_matrix"}
    named = {name: getattr(q, name) for name in constraints if name not in left_out}
    parameters = {
        name: _with_batch_axes(p, q, constraints[name])
        for name, p in named.items()
        if isinstance(p, Tensor) and p.is_floating_point()
    }
    if not parameters:
        raise TypeError(
            f"expected a distribution whose arg_constraints name its parameters (tensors that are attributes of it), "
            f"got {type(q).__name__}, where they name {sorted(constraints) or 'none'}. {HOW_TO_REGISTER}"
        )
    return parameters


@distribution_parameters.register(Independent)
def _(q: Independent[Distribution]) -> dict[str, Tensor]:
    return distribution_parameters(q.base_dist)


def _is_at_the_edge(q: Bernoulli | Categorical | OneHotCategorical) -> bool:
    """Whether q was given by probabilities of which one is 0 or 1 up to rounding, so that torch's logits are wrong."""
    if not is_given_by_probs(q):
        return False
    probs: Tensor = q.probs
    near = torch.finfo(probs.dtype).eps
    beyond = (probs < near) | (probs > 1 - near) if isinstance(q, Bernoulli) else probs < near
    return bool(beyond.any())


def _with_batch_axes(p: Tensor, q: Distribution, constraint: Any) -> Tensor:
    """Expand p to all batch axes of q, so that further axes can be added on the left."""
    lead = len(q.batch_shape)
    if p.shape[:lead] == q.batch_shape:
        return p
    event = p.shape[p.ndim - constraint.event_dim :]
    return p.expand(*q.batch_shape, *event)


@singledispatch
def rebuild(q: Distribution, parameters: Mapping[str, Tensor]) -> Distribution:
    """Return a copy of q with other parameters, which may have additional batch axes on the left.

    This works for a class of your own, without doing anything, if

    - it is derived from a family of torch: the parameters of that family are replaced, and other attributes kept; or
    - its `arg_constraints` name its parameters, and these are attributes of the object. Its constructor is not called:
      q is copied, and the attributes that are parameters are replaced.

    A class that computes other attributes from its parameters must register both what its parameters are and how to
    make a copy, with `distribution_parameters.register` and `rebuild.register` (`functools.singledispatch`), as in the
    example.

    Args:
        q: Any distribution.
        parameters: A tensor for each name in `distribution_parameters(q)`, of the shape of that parameter with any
            number of axes added on the left.

    Raises:
        TypeError: q cannot be rebuilt from its parameters.

    Example:
        >>> import torch
        >>> from torch.distributions import Normal, constraints
        >>> class Sum(Distribution):  # of k independent normals
        ...     arg_constraints = {}
        ...     support = constraints.real
        ...     def __init__(self, loc, k):
        ...         self.k, self.total = k, Normal(k * loc, k**0.5)
        ...         super().__init__(loc.shape, validate_args=False)
        ...     def sample(self, sample_shape=()):
        ...         return self.total.sample(sample_shape)
        ...     def log_prob(self, z):
        ...         return self.total.log_prob(z)
        >>> @distribution_parameters.register
        ... def _(q: Sum) -> dict[str, Tensor]:
        ...     return {"loc": q.total.loc / q.k}
        >>> @rebuild.register
        ... def _(q: Sum, parameters: Mapping[str, Tensor]) -> Sum:
        ...     return Sum(parameters["loc"], q.k)
        >>> q = Sum(torch.zeros(2), k=5)
        >>> rebuild(q, {"loc": torch.ones(3, 2)}).total.loc.shape
        torch.Size([3, 2])
    """
    family = inherited_constructor(type(q))
    new = object.__new__(type(q))
    if family is Distribution:
        return _copy(q, new, parameters)
    given = {name: _argument(q, name) for name in _other_arguments(q)}
    try:
        vars(family)["__init__"](new, **parameters, **given, validate_args=False)
    except (TypeError, ValueError) as error:
        expected = sorted(distribution_parameters(q))
        raise TypeError(
            f"expected the parameters {expected} of {type(q).__name__}, got {sorted(parameters)} ({error})."
        ) from error
    keep_other_attributes(q, new, parameters)
    return new


@rebuild.register(Independent)
def _(q: Independent[Distribution], parameters: Mapping[str, Tensor]) -> Distribution:
    return Independent(rebuild(q.base_dist, parameters), q.reinterpreted_batch_ndims, validate_args=False)


@rebuild.register
def _(q: OneHotCategorical, parameters: Mapping[str, Tensor]) -> Distribution:
    new = one_hot_of(cast(Categorical, rebuild(categorical_of(q), parameters)), type(q))
    keep_other_attributes(q, new, parameters)
    return new


def inherited_constructor(family: type[Distribution]) -> type[Distribution]:
    """Return the nearest superclass (or the class itself) that is one of torch's and has a constructor."""
    return next(c for c in family.__mro__ if "__init__" in vars(c) and c.__module__.startswith("torch.distributions"))


def _other_arguments(q: Distribution) -> list[str]:
    """Return the names of the constructor's arguments that are no parameters, such as counts or a temperature."""
    family = inherited_constructor(type(q))
    if family is Distribution:
        return []
    if family not in _arguments:
        _arguments[family] = list(inspect.signature(vars(family)["__init__"]).parameters)[1:]
    return [name for name in _arguments[family] if name != "validate_args" and name not in q.arg_constraints]


def _argument(q: Distribution, name: str) -> Any:
    """Return an argument of torch's constructor, which is kept as an attribute of that name."""
    return getattr(q, name) if hasattr(q, name) else getattr(q, f"_{name}")


def _copy(q: Distribution, new: Distribution, parameters: Mapping[str, Tensor]) -> Distribution:
    """Make `new` a copy of q, in which attributes that are parameters are replaced."""
    old = {name: getattr(q, name) for name in parameters}
    missing = [name for name, p in old.items() if not any(value is p for value in vars(q).values())]
    if missing:
        raise TypeError(
            f"expected a distribution whose parameters are attributes of it, got {type(q).__name__}, where "
            f"{', '.join(missing)} is worked out. {HOW_TO_REGISTER}"
        )
    for key, value in vars(q).items():
        for name, p in old.items():
            if value is p:
                vars(new)[key] = parameters[name]
    keep_other_attributes(q, new, parameters)
    name, p = next(iter(distribution_parameters(q).items()))
    lead = parameters[name].shape[: parameters[name].ndim - p.ndim]
    Distribution.__init__(new, lead + q.batch_shape, q.event_shape, validate_args=False)
    return new


def keep_other_attributes(q: Distribution, new: Distribution, parameters: Mapping[str, Tensor]) -> None:
    """Copy to `new` those attributes of q that it lacks.

    If an attribute is a parameter of q under another name, it becomes the new parameter.
    """
    old = None
    for key, value in vars(q).items():
        if key in vars(new) or _is_worked_out(q, key):
            continue
        if isinstance(value, Tensor) and value.requires_grad:
            old = distribution_parameters(q) if old is None else old
            same = [name for name, p in old.items() if p.data_ptr() == value.data_ptr() and p.shape == value.shape]
            value = parameters[same[0]] if same else value
        vars(new)[key] = value


def _is_worked_out(q: Distribution, key: str) -> bool:
    """Whether an attribute is a cached result, which a copy computes for itself when it is needed."""
    return isinstance(inspect.getattr_static(type(q), key, None), lazy_property)


def check_no_hidden_parameters(q: Distribution) -> None:
    """Raise if q contains tensors that require a gradient but are none of its parameters: they would get no gradient.

    Raises:
        TypeError: There are such tensors.
    """
    base = base_distribution(q)
    if type(base).__module__.startswith("torch.distributions") and not _other_arguments(base):
        return
    parameters = {name: p.detach() for name, p in distribution_parameters(q).items()}
    hidden = sorted(set(learned_tensors(rebuild(q, parameters), "")))
    if hidden:
        raise TypeError(
            f"{type(base).__name__} holds tensors that require grad and are none of its parameters "
            f"({', '.join(sorted(parameters))}): {', '.join(hidden)}. Estimators that do not differentiate the sample "
            f"would give them no gradient. {HOW_TO_REGISTER} Or use Pathwise, if its samples are reparameterized."
        )


def learned_tensors(value: Any, name: str) -> Iterator[str]:
    """Yield the names of all tensors inside a distribution or a transform that require a gradient."""
    if isinstance(value, Tensor):
        if value.requires_grad:
            yield name
    elif isinstance(value, nn.Module):
        yield from (f"{name}.{key}".lstrip(".") for key, p in value.named_parameters() if p.requires_grad)
    elif isinstance(value, Distribution):
        for key, inner in vars(value).items():
            yield from learned_tensors(inner, f"{name}.{key}".lstrip("."))
    elif isinstance(value, Transform):
        for key, inner in vars(value).items():
            if key not in KEPT_BY_TRANSFORMS:
                yield from learned_tensors(inner, f"{name}.{key}")
        if type(value) is INVERSE:
            yield from learned_tensors(value.inv, f"{name}.inv")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from learned_tensors(inner, f"{name}.{i}")
