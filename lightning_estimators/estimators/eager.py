"""What `torch.compile` is kept out of; a module of its own, because importing torch's compiler takes a second."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.distributions import Distribution

if TYPE_CHECKING:
    from lightning_estimators.estimators.base import Cost, GradientEstimator

__all__ = ["run_eagerly"]


def run_eagerly(estimator: GradientEstimator, q: Distribution, f: Cost, context: Tensor | None) -> Tensor:
    """Call an estimator without compiling it."""
    return cast(Tensor, _run_eagerly(estimator, q, f, context))


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's has no types
def _run_eagerly(estimator: GradientEstimator, q: Distribution, f: Cost, context: Tensor | None) -> Tensor:
    return estimator.forward(q, f, context)
