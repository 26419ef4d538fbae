"""Evaluating a cost at points that are no samples, so that layers inside it do not take them for samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributions import Distribution

from lightning_estimators.distributions import sample
from lightning_estimators.norm_layers import norms_kept
from lightning_estimators.objectives import Objective

__all__ = ["evaluated_elsewhere"]


@contextmanager
def evaluated_elsewhere(q: Distribution, f: Objective) -> Iterator[None]:
    """Mark the only evaluation of f that an estimator makes as one at points that are no samples of q.

    Layers that keep running statistics (`norm_layers.norms_kept`) leave these points out; where there are any, f is
    evaluated once more, at a sample, for them to see. Points that are evaluated beside a sample need no mark if they
    share its noise (`CommonNoise.replay`).

    Args:
        q: The distribution.
        f: The cost.
    """
    with norms_kept() as kept:
        yield
    if kept and kept.is_outermost:
        with torch.no_grad():
            f(sample(q))
