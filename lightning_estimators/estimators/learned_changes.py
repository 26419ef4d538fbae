"""What is learned from coordinate changes that were evaluated, for guesses of those that will not be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_estimators.objectives.sampled_changes import ChangeModel, SampledChanges
from lightning_estimators.running_statistics import RunningStatistics

__all__ = ["LearnedChanges"]

_PRIOR_DRAWS = 5.0  # how many draws the prior of an entry's coefficients and error is worth
_LARGEST = 1024  # entries for which slopes between all pairs are learned
_LEAST_ERROR = 0.1  # of an entry, relative to that of all


class LearnedChanges(RunningStatistics):
    r"""Running regressions, from which `SampledChanges` guesses: of the changes themselves, and of the gradient.

    For every entry of the event, the change over the step is regressed on $(\partial f, 1, \delta / 2)$ by least
    squares, weighted by how much each change matters (squared weight in the gradient, over how often it is drawn), with
    a ridge towards $(1, 0, 0)$: a change is what the gradient says. Sums decay by a factor with every call. The usual
    error of an entry is the root of the weighted mean of the squared errors its guesses had.

    For pairs of entries, the gradient in one is regressed on the other's distance from its mean, one at a time: for
    independent coordinates that is the joint regression. Its part in the current gradient is then known to be noise.

    All sums are persistent buffers, added up over processes; see `RunningStatistics` for what enters and when.

    Args:
        decay: Of the sums about changes, with every call, in [0, 1).
        slope_decay: Of the sums about pairs.
        average_over_processes: Whether the draws of all processes enter, as for `baselines.MovingAverage`.
    """

    products: Tensor
    importance: Tensor
    gradients: Tensor

    def __init__(
        self,
        decay: float = 0.99,
        slope_decay: float = 0.995,
        average_over_processes: bool | None = None,  # noqa: FBT001
    ) -> None:
        super().__init__(_sums(0), average_over_processes)
        self.decay, self.slope_decay = decay, slope_decay

    def prepare(self, entries: int, like: Tensor) -> None:
        """Give the sums their size.

        Args:
            entries: Of an event.
            like: A tensor on the device of the sums.

        Raises:
            ValueError: They have another size already.
        """
        known = len(self.products)
        if known == entries:
            return
        if known:
            raise ValueError(
                f"the changes of events of {known} entries were learned, and the event has {entries} now. An estimator "
                "that samples changes serves one layer: give each its own (copy.deepcopy)."
            )
        for name, start in _sums(entries).items():
            setattr(self, name, start.to(like.device, self.products.dtype))

    def model(self, sums: Sequence[Tensor]) -> ChangeModel:
        """Return what sums, as `past` returns them, say about changes."""
        precise = [s.to(torch.promote_types(s.dtype, torch.float32)) for s in sums]
        products, targets, errors, mass, draws, slope_products, slope_mass, examples, *_ = precise
        each = mass.sum() / draws.clamp_min(1)  # the weight of a draw
        prior = torch.where(each > 0, _PRIOR_DRAWS * each, 1.0)
        # In units in which features are as large as one another.
        size = products.diagonal(dim1=-2, dim2=-1).sum(0) / mass.sum().clamp_min(torch.finfo(mass.dtype).tiny)
        unit = torch.where(size > 0, size, 1.0).sqrt()
        eye = torch.eye(3, dtype=products.dtype, device=products.device)
        scaled = products / (unit[:, None] * unit) + prior * eye
        beyond = torch.linalg.solve(scaled, targets / unit) / unit
        usual = torch.where(errors.sum() > 0, errors.sum() / mass.sum(), 1.0)
        squared = (errors + prior * usual) / (mass + prior)
        error = squared.clamp_min(_LEAST_ERROR**2 * usual).sqrt()
        slopes = None
        if slope_products.numel():
            entries = len(products)
            pair = slope_mass.sum() / (entries**2 * examples.clamp_min(1))
            slopes = slope_products / (slope_mass + torch.where(pair > 0, 2 * entries * pair, 1.0))
        return ChangeModel(beyond + eye[0], error, slopes)

    def take_in(self, changes: SampledChanges, width: int) -> None:
        """Let what a call observed enter the sums.

        Args:
            changes: Of the call.
            width: How many entries a variable has: slopes are those between variables.
        """
        if not changes.point.numel() and not self.sums_over_processes():
            return
        figures = self.sum_over_processes(self._observed(changes, width))
        decays = [self.decay] * 5 + [self.slope_decay] * 5
        old = zip(self._statistics(), decays, figures, strict=True)
        self.replace([decay * before + new.to(before.dtype) for before, decay, new in old])

    def _observed(self, changes: SampledChanges, width: int) -> list[Tensor]:
        entries = len(self.products)
        sums = {name: start.to(changes.gradient) for name, start in _sums(entries).items()}
        importance = changes.gradient.new_zeros(())
        for seen in changes.observed:
            x, w = seen.features, seen.weights
            beyond = seen.change - x[:, 0]  # what the gradient does not say
            sums["products"].index_add_(0, seen.entries, w[:, None, None] * x[:, :, None] * x[:, None, :])
            sums["targets"].index_add_(0, seen.entries, (w * beyond)[:, None] * x)
            sums["errors"].index_add_(0, seen.entries, w * (seen.change - seen.guess).square())
            sums["mass"].index_add_(0, seen.entries, w)
            sums["draws"] += (w > 0).sum()
            importance = importance + seen.importance
        if changes.centred is not None and sums["slope_products"].numel() and changes.observed:
            gradient, centred = (x.reshape(importance.shape) for x in (changes.gradient, changes.centred))
            # Centred by the mean of the past, which is the same in all processes: less noise in the slopes.
            mean = self.gradients / torch.where(self.importance > 0, self.importance, 1.0)
            products = (importance * (gradient - mean.to(gradient.dtype))).T @ centred
            variable = torch.arange(entries, device=products.device) // width
            sums["slope_products"] = products.masked_fill_(variable[:, None] == variable, 0.0)
            sums["slope_mass"] = importance.T @ centred.square()
            sums["examples"] += len(gradient)
            sums["importance"], sums["gradients"] = importance.sum(0), (importance * gradient).sum(0)
        return list(sums.values())

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}products")
        if isinstance(saved, Tensor) and not len(self.products):
            self.prepare(len(saved), self.products)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _sums(entries: int) -> dict[str, Tensor]:
    """Return sums of nothing, by name."""
    pairs = entries if entries <= _LARGEST else 0
    return {
        "products": torch.zeros(entries, 3, 3),
        "targets": torch.zeros(entries, 3),
        "errors": torch.zeros(entries),
        "mass": torch.zeros(entries),
        "draws": torch.zeros(()),
        "slope_products": torch.zeros(pairs, pairs),
        "slope_mass": torch.zeros(pairs, pairs),
        "examples": torch.zeros(()),
        "importance": torch.zeros(entries),
        "gradients": torch.zeros(entries),
    }
