"""Policies as what estimators are compared on: every draw is on another rollout that the policy acted."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from lightning_estimators.comparison.subject import Drawn, ModuleSubject
from lightning_estimators.estimators import GradientEstimator
from lightning_estimators.module_gradients import Gradients
from lightning_estimators.rollout import Rollout

__all__ = ["ON_ROLLOUTS", "RolloutSubject", "acted_rollouts"]

_MOST, _FEWEST = 512, 8
_MEASURED = 0.75  # of the rollouts; candidates that learn do so on the others

ON_ROLLOUTS = (
    "every draw is on a rollout of its own, the same for all candidates, so that the variance is that of acting, too; "
    "the total leaves out the critic, which no estimator changes"
)


class RolloutSubject(ModuleSubject):
    """A policy that learns from what it acted (`rollout.Policy`).

    Most of the variance of its gradient comes from acting: given one rollout, REINFORCE has no variance at all. So the
    k-th draw of every candidate is on the k-th rollout.

    Args:
        module: The policy.
        rollouts: What it acted at the weights that it has.
        seed: Of all other noise.
    """

    def __init__(self, module: pl.LightningModule, rollouts: Sequence[Rollout], seed: int) -> None:
        count = round(_MEASURED * len(rollouts))
        self.measured, self.learned = rollouts[:count], rollouts[count:]
        super().__init__(module, rollouts[0], seed)

    def totals(self) -> list[str]:
        """Return the groups of the policy: the gradient of a critic is the same whatever the estimator is."""
        return [name for name in super().totals() if not name.startswith("critic")]

    def known_estimators(self) -> list[GradientEstimator]:
        """Return those that take observed costs, one sample each."""
        known = super().known_estimators()
        return [one for one in known if one.takes_observed_costs and one.num_samples == 1]

    def draw(
        self,
        estimators: Mapping[str, GradientEstimator],
        counters: Sequence[int],
        restore: Callable[[], None],
        own: Sequence[nn.Parameter] = (),
    ) -> Drawn:
        """Return one estimate, on the rollout whose number is the last of the counters."""
        part = self.learned if counters[1] == 1 else self.measured
        self.batch = part[counters[-1] % len(part)]
        return super().draw(estimators, counters, restore, own)

    def _of_latents(self, drawn: Gradients) -> dict[str, Tensor]:
        return {}  # other rollouts are in other states, whose gradients are nothing to take a variance of


def acted_rollouts(module: pl.LightningModule, source: Any, seconds: float) -> list[Rollout]:
    """Return rollouts to compare on.

    Args:
        module: The policy.
        source: What was given to `compare` beside it.
        seconds: How long collecting may take.

    Raises:
        ValueError: It is a single rollout, or yields too few.
        TypeError: It yields something else.
    """
    how = "compare(module, datamodule.rollouts(module)), or another iterable of rollouts that the policy acts now"
    if isinstance(source, Rollout):
        raise ValueError(
            "a policy cannot be compared on one rollout: the actions in it are given, and acting is where most of the "
            f"variance comes from. Expected many rollouts: {how}."
        )
    if not isinstance(source, Iterable):
        raise TypeError(f"a policy is compared on rollouts, got {type(source).__name__}. Expected {how}.")
    found: list[Rollout] = []
    deadline, rollouts = time.monotonic() + seconds, iter(source)
    try:
        for rollout in itertools.islice(rollouts, _MOST):
            if not isinstance(rollout, Rollout):
                raise TypeError(f"a policy is compared on rollouts, got {type(rollout).__name__}. Expected {how}.")
            found.append(module.transfer_batch_to_device(rollout, module.device, 0))
            if len(found) >= _FEWEST and time.monotonic() > deadline:
                break
    finally:
        if hasattr(rollouts, "close"):
            rollouts.close()
    if len(found) < _FEWEST:
        raise ValueError(f"compare needs at least {_FEWEST} rollouts of a policy, got {len(found)}: {how}.")
    return found
