"""Costs that couple the batch, which no estimator can take: found by changing some latents and looking at others."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import Distribution

from lightning_estimators.distributions import distribution_parameters, sample
from lightning_estimators.noise import CommonNoise
from lightning_estimators.norm_layers import norms_kept
from lightning_estimators.objectives import CallableObjective, Objective
from lightning_estimators.objectives.answers import ChangedInPlaceError

if TYPE_CHECKING:
    from lightning_estimators.estimators.base import GradientEstimator

__all__ = ["refuse_coupled_costs"]

_FAR_LEFT = 10**6  # more batch axes than any estimator adds: nothing shares noise along this one


def refuse_coupled_costs(estimator: GradientEstimator, q: Distribution, f: Objective) -> None:
    """Raise if the cost of one batch element changes with the latents of another.

    Draws latents, draws those of every second element anew, and looks at the costs of the others. Nothing can be told
    of an f that is random by itself; an objective that knows its structure is trusted. Generators are left as they
    were, and so are running statistics of BatchNorm, which couples the batch too, but is warned of only: the models of
    many have it.

    Args:
        estimator: Who asks.
        q: With the samples as first batch axis.
        f: The cost.

    Raises:
        ValueError: It does, and not through layers of torch that are known to (`norms_kept`); or f changes z in place.
    """
    if not isinstance(f, CallableObjective) or isinstance(f.f, Objective) or q.batch_shape.numel() < 2:
        return
    name = type(estimator).__name__
    device = next(iter(distribution_parameters(q).values())).device
    replayed = CommonNoise(device).replay(new_axis=_FAR_LEFT)
    compiles = "torch._dynamo" in sys.modules
    eagerly = torch.compiler.set_stance("force_eager") if compiles else nullcontext()
    with torch.no_grad(), replayed, eagerly, norms_kept() as norms, _own_generators(device):
        try:
            coupled = _is_coupled(q, f)
        except ChangedInPlaceError:
            raise
        except Exception:  # what is wrong with f will be told when it is evaluated in earnest
            return
    if compiles:
        norms.remember()
    if coupled and norms:
        warnings.warn(
            "f contains BatchNorm in training mode, which couples the batch: the cost of an element depends on the "
            f"latents of the others, through the statistics that it is normalised by. {name} leaves this out of the "
            "gradient, which is biased by it. Put the layer in evaluation mode, or use GroupNorm or LayerNorm.",
            stacklevel=4,
        )
    elif coupled:
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
        given = at.clone()
        answer = f(given)
        if not torch.allclose(
            given, at, rtol=0, atol=0, equal_nan=True
        ):  # through NumPy, say, of which torch knows not
            raise ChangedInPlaceError
        return answer[kept].double()

    first, second = costs(z), costs(moved)
    if _is_same(first, second):
        return False
    # Where f is random by itself nothing can be told: how much noise one element takes may depend on its latents, as
    # that of gamma variables does, and the others then get another share of it.
    return _is_same(first, costs(z, seed=1))


def _is_same(first: Tensor, second: Tensor) -> bool:
    scale = first[first.isfinite()].abs().max().item() if bool(first.isfinite().any()) else 0.0
    return torch.allclose(first, second, rtol=1e-4, atol=1e-5 * scale, equal_nan=True)


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
