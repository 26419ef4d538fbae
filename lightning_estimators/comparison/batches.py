"""The batches on which estimators are compared: one given, or those of a loader."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from lightning_estimators.comparison.measurement import Measured
from lightning_estimators.comparison.subject import ModuleSubject
from lightning_estimators.moments import GradientMoments

__all__ = ["Batches", "data_variance"]

_MOST = 32  # batches whose gradients are compared with one another


class Batches:
    """Yields batches on the device of a module, and leaves a loader's generators as they were.

    Args:
        module: Whose hooks move batches to its device.
        source: A batch; or a loader: a `DataLoader`, or another iterable with a `batch_size`.
    """

    def __init__(self, module: pl.LightningModule, source: Any) -> None:
        self.module, self.is_loader = module, _is_loader(source)
        # Loaders count their epochs; those of a copy are nobody's. A DataLoader may not be copied while workers run.
        loader: Any = source if isinstance(source, DataLoader) or not self.is_loader else copy.copy(source)
        parts = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
        generators = [getattr(part, "generator", None) for part in parts] if self.is_loader else []
        self._states = [(g, g.get_state()) for g in generators if isinstance(g, torch.Generator)]
        self._rest: Iterator[Any] = iter(loader if self.is_loader else [source])

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches that are left."""
        for batch in self._rest:
            batch = self.module.on_before_batch_transfer(batch, 0)
            batch = self.module.transfer_batch_to_device(batch, self.module.device, 0)
            yield self.module.on_after_batch_transfer(batch, 0)

    def close(self) -> None:
        """Put generators back, and end worker processes."""
        self._rest = iter(())
        for generator, state in self._states:
            generator.set_state(state)


def _is_loader(source: Any) -> bool:
    if isinstance(source, DataLoader):
        return True
    is_data = isinstance(source, torch.Tensor | Mapping | Sequence)
    return not is_data and hasattr(type(source), "__iter__") and hasattr(source, "batch_size")


def data_variance(subject: ModuleSubject, one: Measured, batches: Batches, seconds: float) -> float | None:
    """Return the total variance of the gradient between batches: that of means of two estimates, less their own.

    Args:
        subject: On the first batch.
        one: An unbiased candidate, which draws.
        batches: The others.
        seconds: When to stop.

    Returns:
        None if there were fewer than three batches.
    """
    deadline = time.monotonic() + seconds
    between = GradientMoments(per_entry=False)
    within = count = 0.0
    for index, batch in enumerate(batches):
        other = subject.on(batch)
        restore = other.session(*one.candidate.estimators.values())
        draws = [other.draw(one.candidate.estimators, (one.index, 3, index, k), restore).gradients for k in range(2)]
        names = [name for name in subject.totals() if all(name in draw for draw in draws)]
        a, b = (torch.cat([draw[name] for name in names]) for draw in draws)
        between.update({"total": ((a + b) / 2).unsqueeze(0)})
        within += float((a - b).square().sum()) / 2
        count += 1
        if count == _MOST or (count > 2 and time.monotonic() > deadline):
            break
    if count < 3:
        return None
    found = float(between.statistics("total").total_variance) - within / count / 2
    return max(0.0, found) if math.isfinite(found) else None
