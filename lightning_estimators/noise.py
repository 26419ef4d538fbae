"""Uniform noise, and common random numbers for estimators that are nested in one another.

Every estimator of the package draws through `uniform`, so that one place decides its range, its precision and
what is shared. `CommonNoise` lets an outer estimator evaluate its cost at several points under *one* draw of the noise
inside that cost (the latents of an inner estimator): differences between the points then carry no inner noise, which
lowers the variance and, since every point keeps its own distribution, changes no mean. `coupled_samples` lets the
samples of one estimator depend on one another instead, in a way that keeps the distribution of each.
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

# Batch axes along which noise is drawn once, each named by how many batch axes stand to its right
# (inner estimators add axes on the left only, so that count is the same at every depth).
_shared_axes: ContextVar[tuple[int, ...]] = ContextVar("shared_axes", default=())


@dataclass(frozen=True)
class _CoupledAxis:
    """The axis of samples of the running estimator: the first axis of noise with this batch shape."""

    coupling: Coupling
    batch_shape: tuple[int, ...]


_coupled_axis: ContextVar[_CoupledAxis | None] = ContextVar("coupled_axis", default=None)

_scope_numbers = itertools.count(1)
_current_scope: ContextVar[int | None] = ContextVar("current_scope", default=None)


def uniform(
    batch_shape: Sequence[int], event_shape: Sequence[int], *, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Draw U(0, 1) noise of shape `batch_shape + event_shape` that is never exactly 0 or 1.

    Args:
        batch_shape: Axes of which those shared by an enclosing `CommonNoise.replay` get one draw, broadcast. If the
            first is the axis of samples of an enclosing `coupled_samples`, its entries depend on one another.
        event_shape: Axes that are always drawn independently.
        dtype: Floating type; at least float32, since coarser noise would bias every sample.
        device: Where to draw, from that device's global generator.

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
        # rand is in [0, 1): 0 becomes the smallest normal number, whose logit (-87 in float32) is finite.
        return torch.rand(drawn, dtype=dtype, device=device).clamp_min_(torch.finfo(dtype).tiny).expand(full)
    first = torch.rand((1, *drawn[1:]), dtype=dtype, device=device)
    # Both ends move inwards by as much, or the antithetic number of one that is almost 0 would round to 1.
    end = torch.finfo(dtype).eps / 2
    return _coupled(first, batch_shape[0], axis.coupling).clamp_(end, 1 - end).expand(full)


def _coupled(first: Tensor, samples: int, coupling: Coupling) -> Tensor:
    """Return noise of so many samples, each of which is uniform, from that of the first, which has one entry."""
    if coupling == "antithetic":
        return torch.cat([first, 1 - first])
    shifts = torch.arange(samples, dtype=first.dtype, device=first.device) / samples
    return (first + shifts.reshape(-1, *(1,) * (first.ndim - 1))).frac_()


@contextmanager
def coupled_samples(coupling: Coupling, batch_shape: Sequence[int]) -> Iterator[None]:
    """Let the samples that are drawn inside depend on one another, while each keeps its own distribution.

    Every entry of the noise gets one uniform number u, and its samples are

    - "antithetic", of which there are two: u and 1 - u;
    - "stratified", K of them: u + k/K modulo 1, one in every K-th part of (0, 1);
    - "independent": unlike this, and unlike what an enclosing `coupled_samples` says.

    Noise of another batch shape, such as that of estimators inside the cost, is left alone.

    Args:
        coupling: Which of the three.
        batch_shape: That of the noise, the axis of samples being the first.

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
    """Draw independent noise inside, as costs do that are random themselves."""
    with coupled_samples("independent", ()):
        yield


def is_coupled() -> bool:
    """Whether samples drawn now must depend on one another, so be made from `uniform` noise alone."""
    return _coupled_axis.get() is not None


def is_replaying() -> bool:
    """Whether the noise drawn now has been drawn before, so that it is not independent of costs already seen.

    A baseline that averages past costs must then use the average from before the current `replay_scope`.
    """
    return bool(_shared_axes.get())


@contextmanager
def replay_scope() -> Iterator[None]:
    """Mark the stretch of code within which noise may be replayed; also usable as a decorator.

    Noise that is drawn inside the scope may be drawn again inside it, and nowhere else. Every call of an estimator is
    such a scope, together with the calls of other estimators inside its cost. Scopes that are nested count as one.
    """
    token = _current_scope.set(current_scope())
    try:
        yield
    finally:
        _current_scope.reset(token)


def current_scope() -> int:
    """Return the number of the running `replay_scope`, or a number never used before when none is running.

    Statistics of costs that were gathered before a scope began are independent of all noise replayed inside it.
    """
    running = _current_scope.get()
    return next(_scope_numbers) if running is None else running


class CommonNoise:
    """Remember the generator's state now; evaluate again under the same noise later.

    Args:
        device: Device whose generator is replayed.

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
        """Draw what was drawn since the snapshot again, the same along one more batch axis.

        Args:
            new_axis: How many batch axes stand to the right of the new one.
        """
        before = self._get()
        self._set(self.state)
        token = _shared_axes.set((*_shared_axes.get(), new_axis))
        try:
            yield
        finally:
            _shared_axes.reset(token)
            if torch.equal(self._get(), self.state):
                # Nothing was drawn again: go on from where we were, or all that follows would repeat what was drawn.
                self._set(before)

    def is_unused(self) -> bool:
        """Whether nothing was drawn since the snapshot."""
        return torch.equal(self._get(), self.state)

    def _get(self) -> Tensor:
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()

    def _set(self, state: Tensor) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state, self.device)
        else:
            torch.set_rng_state(state)
