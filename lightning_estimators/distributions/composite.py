"""Distributions made of others: mixtures, and transformed distributions."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor
from torch.distributions import Distribution, MixtureSameFamily, TransformedDistribution
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    IndependentTransform,
    PowerTransform,
    Transform,
)

from lightning_estimators.distributions.parameters import (
    INVERSE,
    distribution_parameters,
    inherited_constructor,
    keep_other_attributes,
    learned_tensors,
    rebuild,
)

__all__ = ["is_learned", "is_plainly_transformed"]

Named = Mapping[str, Tensor]


@distribution_parameters.register
def _(q: MixtureSameFamily) -> dict[str, Tensor]:
    """Return the logits of the mixture as `mixture.logits`, and parameters of the components as `component.<name>`."""
    lead = q.component_distribution.batch_shape[:-1]
    mixture = distribution_parameters(q.mixture_distribution)  # may have fewer batch axes than the components
    named = {f"mixture.{name}": p.expand(*lead, p.shape[-1]) for name, p in mixture.items()}
    return {**named, **_prefixed("component", distribution_parameters(q.component_distribution))}


@rebuild.register
def _(q: MixtureSameFamily, parameters: Named) -> Distribution:
    if not all(name.startswith(("mixture.", "component.")) for name in parameters):
        expected = sorted(distribution_parameters(q))
        raise TypeError(f"expected the parameters {expected} of {type(q).__name__}, got {sorted(parameters)}.")
    new = object.__new__(type(q))
    mixture = rebuild(q.mixture_distribution, _under("mixture", parameters))
    component = rebuild(q.component_distribution, _under("component", parameters))
    MixtureSameFamily.__init__(new, mixture, component, validate_args=False)  # type: ignore[arg-type]
    keep_other_attributes(q, new, parameters)
    return new


def is_learned(transform: Transform) -> bool:
    """Whether a transform has parameters that are learned: tensors that require a gradient."""
    return any(True for _ in learned_tensors(transform, ""))


def is_plainly_transformed(q: Distribution) -> bool:
    """Whether q was built as `TransformedDistribution(base, transforms)`, not as a family such as LogNormal."""
    return isinstance(q, TransformedDistribution) and inherited_constructor(type(q)) is TransformedDistribution


@distribution_parameters.register
def _(q: TransformedDistribution) -> dict[str, Tensor]:
    """Return the parameters of the base as `base.<name>`, and learned ones of transforms as `transforms.0.<name>`.

    Learned parameters are returned for affine and power transforms.
    """
    if not is_plainly_transformed(q):
        return distribution_parameters.dispatch(Distribution)(q)
    axes = len(q.batch_shape) + len(q.event_shape)
    named = _prefixed("base", distribution_parameters(q.base_dist))
    for name, p in _learned(q.transforms, "transforms"):
        aligned = p.reshape((1,) * (axes - p.ndim) + p.shape)
        named[name] = aligned.expand(*q.batch_shape, *aligned.shape[len(q.batch_shape) :])
    return named


@rebuild.register
def _(q: TransformedDistribution, parameters: Named) -> Distribution:
    if not is_plainly_transformed(q):
        return rebuild.dispatch(Distribution)(q, parameters)
    new = object.__new__(type(q))
    base = rebuild(q.base_dist, _under("base", parameters))
    transforms = _rebuilt(q.transforms, _under("transforms", parameters))
    TransformedDistribution.__init__(new, base, transforms, validate_args=False)
    keep_other_attributes(q, new, parameters)
    return new


def _learned(transforms: Sequence[Transform], prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the learned parameters of elementwise transforms, whose entries belong to entries of the sample."""
    for i, transform in enumerate(transforms):
        name = f"{prefix}.{i}"
        if type(transform) is INVERSE:
            yield from _learned([transform.inv], name)
        elif isinstance(transform, ComposeTransform):
            yield from _learned(transform.parts, name)
        elif isinstance(transform, IndependentTransform):
            yield from _learned([transform.base_transform], name)
        elif isinstance(transform, AffineTransform | PowerTransform):
            for key, value in vars(transform).items():
                if isinstance(value, Tensor) and value.requires_grad:
                    yield f"{name}.{key}", value


def _rebuilt(transforms: Sequence[Transform], parameters: Named) -> list[Transform]:
    new = []
    for i, transform in enumerate(transforms):
        own = _under(str(i), parameters)
        new.append(_one_rebuilt(transform, own) if own else transform)
    return new


def _one_rebuilt(transform: Transform, parameters: Named) -> Transform:
    if type(transform) is INVERSE:
        return _rebuilt([transform.inv], parameters)[0].inv
    if isinstance(transform, ComposeTransform):
        return ComposeTransform(_rebuilt(transform.parts, parameters))
    if isinstance(transform, IndependentTransform):
        (inner,) = _rebuilt([transform.base_transform], parameters)
        return IndependentTransform(inner, transform.reinterpreted_batch_ndims)
    new = copy.copy(transform)
    vars(new).update(parameters)
    return new


def _prefixed(prefix: str, parameters: Named) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": p for name, p in parameters.items()}


def _under(prefix: str, parameters: Named) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): p for name, p in parameters.items() if name.startswith(f"{prefix}.")}
