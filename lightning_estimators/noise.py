"""Uniform noise, common random numbers for nested estimators, and samples that depend on one another.

Every estimator of the package draws its noise by `uniform`.

- `CommonNoise` is for costs that are random themselves, because they contain another estimator. It lets the outer
  estimator evaluate such a cost at several points with *the same* noise (common random numbers). Differences between
  the points are then free of that noise, which lowers the variance. At each single point the cost has its usual
  distribution, so no mean changes.
- `coupled_samples` lets the samples of one estimator depend on one another (antithetic or stratified sampling). Each
  single sample keeps its distribution.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_estimators.norm_layers import norms_kept

__all__ = [
    "CommonNoise",
    "Coupling",
    "coupled_samples",
    "current_scope",
    "independent_samples",
    "is_coupled",
    "is_replaying",
    "replay_scope",
    "uniform",
]

Coupling = Literal["independent", "antithetic", "stratified"]
"""How the samples of an estimator depend on one another."""

# The batch axes along which noise is drawn once and repeated. An axis is identified by the number of batch axes to its
# right. Inner estimators add axes on the left only, so this number is the same for an estimator at any depth.
_shared_axes: ContextVar[tuple[int, ...]] = ContextVar("shared_axes", default=())


@dataclass(frozen=True)
class _CoupledAxis:
    """How the samples of the running estimator are coupled; axis 0 of noise with this batch shape are the samples."""

    coupling: Coupling
    batch_shape: tuple[int, ...]


_coupled_axis: ContextVar[_CoupledAxis | None] = ContextVar("coupled_axis", default=None)

_scope_numbers = itertools.count(1)
_current_scope: ContextVar[int | None] = ContextVar("current_scope", default=None)


def uniform(
    batch_shape: Sequence[int], event_shape: Sequence[int], *, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Draw numbers from U(0, 1), shape `batch_shape + event_shape`, that are never exactly 0 or 1.

    Args:
        batch_shape: The first axes. Along axes that an enclosing `CommonNoise.replay` has added, the numbers are equal.
            If this is the batch shape of an enclosing `coupled_samples`, the numbers along the first axis depend on one
            another. Otherwise they are independent.
        event_shape: The last axes, along which numbers are always independent.
        dtype: A floating type of at least float32: the numbers of coarser types are too few, which would bias samples.
        device: Where to draw, from the global generator of that device.

    Returns:
        Tensor of shape `batch_shape + event_shape`, possibly an expanded view.
    """
    full = (*batch_shape, *event_shape)
    drawn = list(full)
    for right in _shared_axes.get():
        if right < len(batch_shape):
            drawn[len(batch_shape) - 1 - right] = 1
    axis = _coupled_axis.get()
    if axis is None or tuple(batch_shape) != axis.batch_shape:
        # torch.rand may return 0. It becomes the smallest normal number, whose logit (-87 in float32) is finite.
        return torch.rand(drawn, dtype=dtype, device=device).clamp_min_(torch.finfo(dtype).tiny).expand(full)
    first = torch.rand((1, *drawn[1:]), dtype=dtype, device=device)
    # The numbers are kept at the same distance from 0 and from 1: otherwise 1 - u would round to 1 for tiny u.
    end = torch.finfo(dtype).eps / 2
    return _coupled(first, batch_shape[0], axis.coupling).clamp_(end, 1 - end).expand(full)


def _coupled(first: Tensor, samples: int, coupling: Coupling) -> Tensor:
    """Return the noise of all samples, each of which is uniform, given that of the first sample."""
    if coupling == "antithetic":
        return torch.cat([first, 1 - first])
    shifts = torch.arange(samples, dtype=first.dtype, device=first.device) / samples
    return (first + shifts.reshape(-1, *(1,) * (first.ndim - 1))).frac_()


@contextmanager
def coupled_samples(coupling: Coupling, batch_shape: Sequence[int]) -> Iterator[None]:
    """Let the samples that are drawn inside depend on one another, while each keeps its own distribution.

    For every entry of the noise, one uniform number u is drawn, and the samples of this entry are made of it:

    - "antithetic": the two samples are u and 1 - u;
    - "stratified": sample k of K is u + k/K modulo 1, so there is one sample in every K-th part of (0, 1);
    - "independent": every sample is drawn independently, even inside another `coupled_samples`.

    Noise of another batch shape, such as that of estimators inside the cost, is drawn independently.

    Args:
        coupling: One of the three.
        batch_shape: The batch shape of the noise to couple; its first axis is that of the samples.

    Example:
        >>> import torch
        >>> with coupled_samples("stratified", batch_shape=(4,)):
        ...     u = uniform((4,), (), dtype=torch.float32, device=torch.device("cpu"))
        >>> (4 * u).floor().sort().values  # one number in every quarter
        tensor([0., 1., 2., 3.])
    """
    token = _coupled_axis.set(None if coupling == "independent" else _CoupledAxis(coupling, tuple(batch_shape)))
    try:
        yield
    finally:
        _coupled_axis.reset(token)


@contextmanager
def independent_samples() -> Iterator[None]:
    """Draw independent noise inside, whatever an enclosing `coupled_samples` says."""
    with coupled_samples("independent", ()):
        yield


def is_coupled() -> bool:
    """Whether samples drawn now may have to depend on one another, so must be computed from `uniform` noise only."""
    return _coupled_axis.get() is not None


def is_replaying() -> bool:
    """Whether the noise drawn now is a repetition of earlier noise, inside `CommonNoise.replay`.

    Then the samples are not independent of costs that were computed with that noise before. A baseline that averages
    past costs must use its average from before the current `replay_scope`.
    """
    return bool(_shared_axes.get())


@contextmanager
def replay_scope() -> Iterator[None]:
    """Mark the code within which noise may be repeated; also usable as a decorator.

    Noise that is drawn inside the scope may be repeated inside the same scope, and never after it. Every outermost call
    of an estimator is such a scope, and includes the calls of other estimators inside its cost: nested scopes count as
    one.
    """
    token = _current_scope.set(current_scope())
    try:
        yield
    finally:
        _current_scope.reset(token)


def current_scope() -> int:
    """Return the number of the running `replay_scope`, or a number never used before if none is running.

    Averages of costs that were gathered before a scope began are independent of all noise drawn inside it.
    """
    running = _current_scope.get()
    return next(_scope_numbers) if running is None else running


class CommonNoise:
    """Remembers the state of the random generator, so that the same noise can be drawn again later.

    Args:
        device: The device whose generator is meant.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> noise = CommonNoise(torch.device("cpu"))
        >>> once = uniform((5,), (), dtype=torch.float32, device=torch.device("cpu"))
        >>> with noise.replay(new_axis=1):  # the new axis stands left of one batch axis
        ...     twice = uniform((2, 5), (), dtype=torch.float32, device=torch.device("cpu"))
        >>> bool((twice == once).all())
        True
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.state = self._get()

    @contextmanager
    def replay(self, new_axis: int) -> Iterator[None]:
        """Draw the same noise again as was drawn after this object was made, repeated along a new batch axis.

        What is evaluated so is compared with a sample that was evaluated before, so layers that keep running statistics
        do not take it for another sample.

        Args:
            new_axis: The position of the new axis: how many batch axes are to its right.
        """
        before = self._get()
        self._set(self.state)
        token = _shared_axes.set((*_shared_axes.get(), new_axis))
        try:
            with norms_kept():
                yield
        finally:
            _shared_axes.reset(token)
            if torch.equal(self._get(), self.state):
                # Nothing was drawn. The generator must not stay at the old state, or later noise would repeat.
                self._set(before)

    def is_unused(self) -> bool:
        """Whether nothing was drawn since this object was made."""
        return torch.equal(self._get(), self.state)

    def _get(self) -> Tensor:
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()

    def _set(self, state: Tensor) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state, self.device)
        else:
            torch.set_rng_state(state)
