"""Costs that couple the batch, which no estimator can take: found by changing some latents and looking at others."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode

from lightning_estimators.distributions import distribution_parameters, sample
from lightning_estimators.noise import CommonNoise
from lightning_estimators.objectives import CallableObjective, Objective

if TYPE_CHECKING:
    from lightning_estimators.estimators.base import GradientEstimator

__all__ = ["refuse_coupled_costs"]

_FAR_LEFT = 10**6  # more batch axes than any estimator adds: nothing shares noise along this one


def refuse_coupled_costs(estimator: GradientEstimator, q: Distribution, f: Objective) -> None:
    """Raise if the cost of one batch element changes with the latents of another.

    Draws latents, draws those of every second element anew, and looks at the costs of the others. Nothing can be told
    of an f that is random by itself; an objective that knows its structure is trusted. Generators are left as they
    were, and running statistics of BatchNorm are not touched.

    Args:
        estimator: Who asks.
        q: With the samples as first batch axis.
        f: The cost.

    Raises:
        ValueError: It does, and not through BatchNorm alone.
    """
    if not isinstance(f, CallableObjective) or isinstance(f.f, Objective) or q.batch_shape.numel() < 2:
        return
    name = type(estimator).__name__
    device = next(iter(distribution_parameters(q).values())).device
    with torch.no_grad(), CommonNoise(device).replay(new_axis=_FAR_LEFT), _own_generators(device):
        watch = _BatchNormWatch()
        try:
            with watch:
                coupled = _is_coupled(q, f)
        except Exception:  # what is wrong with f will be told when it is evaluated in earnest
            return
    if watch.seen and (estimator.gradient_of_f == "relaxed" or estimator.evaluations(q)[0] > estimator.num_samples):
        warnings.warn(
            f"f contains BatchNorm in training mode, and {name} evaluates f at points that do not occur: its running "
            "statistics, which evaluation uses, will be those of all these points. Put the layer in evaluation mode, "
            "or use GroupNorm or LayerNorm.",
            stacklevel=4,
        )
    if coupled and not watch.seen:
        raise ValueError(
            "f couples the batch: the costs of some elements change with the latents of others, but every estimator "
            f"takes the cost of an element for a function of its own latents, so the gradient of {name} would be "
            "wrong. Make the coupled axis part of the event, q = Independent(q, 1), and let f return one cost for all "
            "of it; or set estimator.allow_coupled_costs = True to accept the error."
        )


def _is_coupled(q: Distribution, f: Callable[[Tensor], Tensor]) -> bool:
    z = sample(q)
    lead, rows = z.shape[: len(q.batch_shape)], q.batch_shape.numel()
    kept = (torch.arange(rows, device=z.device) % 2 == 1).reshape(lead)
    moved = torch.where(kept.reshape(*lead, *(1,) * len(q.event_shape)), z, sample(q))

    def costs(at: Tensor, seed: int = 0) -> Tensor:
        _seed(z.device, seed)
        return f(at.clone())[kept].double()

    first, second = costs(z), costs(moved)
    if _is_same(first, second):
        return False
    # Where f is random by itself nothing can be told: how much noise one element takes may depend on its latents, as
    # that of gamma variables does, and the others then get another share of it.
    return _is_same(first, costs(z, seed=1))


def _is_same(first: Tensor, second: Tensor) -> bool:
    scale = first[first.isfinite()].abs().max().item() if bool(first.isfinite().any()) else 0.0
    return torch.allclose(first, second, rtol=1e-4, atol=1e-5 * scale, equal_nan=True)


class _BatchNormWatch(TorchFunctionMode):
    """Sees BatchNorm in training mode, and lets it use the statistics of the batch without keeping them."""

    seen = False

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(zip(("input", "running_mean", "running_var", "weight", "bias", "training"), args, strict=False))
        given |= kwargs or {}
        if function is torch.nn.functional.batch_norm and given.get("training"):
            self.seen = True
            rest = {k: v for k, v in given.items() if k not in ("running_mean", "running_var", "input")}
            more = dict(zip(("momentum", "eps"), args[6:], strict=False))
            return function(given["input"], None, None, **rest, **more)
        return function(*args, **(kwargs or {}))


@contextmanager
def _own_generators(device: torch.device) -> Iterator[None]:
    """Leave the generators of torch, Python and NumPy as they were: a resumed run draws what a whole one does."""
    python, numpy = random.getstate(), sys.modules.get("numpy")
    state = None if numpy is None else numpy.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            _seed(device, 0)
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(state)


def _seed(device: torch.device, seed: int) -> None:
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
