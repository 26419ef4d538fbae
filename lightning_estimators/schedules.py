"""Settings of estimators that follow a schedule, such as a temperature that is lowered while training.

Schedules of learning rates are torch's own (see also `lightning_estimators.schedulers`); these are of anything else.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lightning_estimators.arguments import check_finite
from lightning_estimators.configurable import Configurable

__all__ = [
    "ConstantSchedule",
    "CosineSchedule",
    "ExponentialSchedule",
    "FollowsSchedules",
    "LinearSchedule",
    "Schedule",
    "TorchSchedule",
    "advance_schedules",
    "set_schedules",
]


class Schedule(Configurable, nn.Module, ABC):
    """A number that depends on how many optimizer steps were made.

    Give it to an estimator where it takes a number: `Concrete(temperature=ExponentialSchedule(1.0, 0.1, steps=9000))`.
    An `EstimatorModule` advances all its schedules by itself; in a loop of your own call
    `advance_schedules(model)` after every `optimizer.step()`. The number of steps is a buffer, so that checkpoints
    keep it and a run that is resumed goes on from there.

    Implementing one: `at`.
    """

    steps_done: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.long))

    @abstractmethod
    def at(self, step: int) -> float:
        """Return the number after so many optimizer steps."""

    def ends(self) -> tuple[float, ...]:
        """Return numbers between which all others lie, as far as they are known beforehand."""
        return (self.at(0),)

    def value(self) -> float:
        """Return the number as it is now."""
        return self.at(int(self.steps_done))


class ConstantSchedule(Schedule):
    """The same number for ever: `c`.

    Args:
        constant: c.

    Example:
        >>> ConstantSchedule(0.5).at(10)
        0.5
    """

    def __init__(self, constant: float) -> None:
        super().__init__()
        check_finite(self, constant=constant)
        self.constant = constant

    def at(self, step: int) -> float:
        """Return c."""
        return self.constant

    def extra_repr(self) -> str:
        """Show the setting."""
        return f"constant={self.constant}"


class _FromTo(Schedule):
    """From one number to another in so many steps, and no further; `_between` says on which curve."""

    def __init__(self, start: float, end: float, steps: int) -> None:
        super().__init__()
        check_finite(self, start=start, end=end)
        if steps < 1:
            raise ValueError(f"{type(self).__name__} needs at least 1 step, got {steps!r}.")
        self.start, self.end, self.steps = start, end, steps

    def at(self, step: int) -> float:
        """Return the number after so many optimizer steps; `end` from `steps` on."""
        return self.end if step >= self.steps else self._between(step / self.steps)

    def ends(self) -> tuple[float, ...]:
        """Return `start` and `end`."""
        return self.start, self.end

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"start={self.start}, end={self.end}, steps={self.steps}"

    @abstractmethod
    def _between(self, share: float) -> float:
        """Return the number after a share of the steps, in [0, 1)."""


class LinearSchedule(_FromTo):
    r"""On a straight line: $a + (b - a) t / T$ after t of T steps.

    Args:
        start: a, the number before the first step.
        end: b, the number from the last step on.
        steps: T, in optimizer steps.

    Raises:
        ValueError: A number is not finite, or there is no step.

    Example:
        >>> [LinearSchedule(1.0, 0.5, steps=10).at(t) for t in (0, 5, 10, 20)]
        [1.0, 0.75, 0.5, 0.5]
    """

    def _between(self, share: float) -> float:
        return self.start + (self.end - self.start) * share


class ExponentialSchedule(_FromTo):
    r"""By the same factor at every step: $a (b / a)^{t / T}$ after t of T steps. The usual one for temperatures.

    Args:
        start: a, the number before the first step; positive.
        end: b, the number from the last step on; positive.
        steps: T, in optimizer steps.

    Raises:
        ValueError: A number is not positive or not finite, or there is no step.

    Example:
        >>> [round(ExponentialSchedule(1.0, 0.01, steps=10).at(t), 6) for t in (0, 5, 10, 20)]
        [1.0, 0.1, 0.01, 0.01]
    """

    def __init__(self, start: float, end: float, steps: int) -> None:
        super().__init__(start, end, steps)
        if min(start, end) <= 0:
            raise ValueError(
                f"ExponentialSchedule multiplies by a factor and needs positive numbers, got {start!r} and {end!r}. "
                "LinearSchedule takes any."
            )

    def _between(self, share: float) -> float:
        return self.start * math.exp(math.log(self.end / self.start) * share)


class CosineSchedule(_FromTo):
    r"""On half a wave, flat at both ends: $b + \frac12 (a - b) (1 + \cos \pi t / T)$ after t of T steps.

    Args:
        start: a, the number before the first step.
        end: b, the number from the last step on.
        steps: T, in optimizer steps.

    Raises:
        ValueError: A number is not finite, or there is no step.

    Example:
        >>> [round(CosineSchedule(1.0, 0.0, steps=10).at(t), 6) for t in (0, 5, 10, 20)]
        [1.0, 0.5, 0.0, 0.0]
    """

    def _between(self, share: float) -> float:
        return self.end + 0.5 * (self.start - self.end) * (1 + math.cos(math.pi * share))


class TorchSchedule(Schedule):
    """The curve of a learning-rate scheduler of torch, in optimizer steps: what the learning rate would be.

    Args:
        start: What the learning rate would be at first.
        scheduler: Makes the scheduler from an optimizer: `functools.partial(StepLR, step_size=100)`.

    Raises:
        ValueError: The scheduler follows a metric (`ReduceLROnPlateau`), not the number of steps.

    Example:
        >>> import functools
        >>> from torch.optim.lr_scheduler import StepLR
        >>> schedule = TorchSchedule(1.0, functools.partial(StepLR, step_size=2, gamma=0.5))
        >>> [schedule.at(t) for t in range(5)]
        [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    def __init__(self, start: float, scheduler: Callable[[Optimizer], LRScheduler]) -> None:
        super().__init__()
        check_finite(self, start=start)
        self.start, self.scheduler = start, scheduler
        self._curve: list[float] = []
        self.at(0)

    def at(self, step: int) -> float:
        """Return the learning rate after so many steps of the scheduler."""
        if step >= len(self._curve):
            self._curve = self._rates(2 * step + 1)
        return self._curve[step]

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"start={self.start}, scheduler={self.scheduler}"

    def _rates(self, count: int) -> list[float]:
        optimizer = SGD([nn.Parameter(torch.zeros(()))], lr=self.start)
        scheduler = self.scheduler(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ValueError(
                "TorchSchedule needs a scheduler that follows the number of steps, got ReduceLROnPlateau, which "
                "follows a metric."
            )
        rates = [float(optimizer.param_groups[0]["lr"])]
        for _ in range(count - 1):
            optimizer.step()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what torch retires inside its own schedulers
                scheduler.step()
            rates.append(float(optimizer.param_groups[0]["lr"]))
        return rates


class FollowsSchedules(nn.Module, ABC):
    """Mixin of modules with a setting that follows a schedule."""

    @abstractmethod
    def set_step(self, steps: int | None) -> None:
        """Take up the settings of after so many optimizer steps in all, or of one more than now if None."""


def advance_schedules(model: nn.Module) -> None:
    """Tell all schedules inside a model that an optimizer step was made: after `optimizer.step()`.

    Example:
        >>> from lightning_estimators.estimators import Concrete
        >>> concrete = Concrete(temperature=LinearSchedule(1.0, 0.5, steps=2))
        >>> advance_schedules(concrete)
        >>> concrete.temperature
        tensor(0.7500)
    """
    _set(model, None)


def set_schedules(model: nn.Module, steps: int) -> None:
    """Tell all schedules inside a model how many optimizer steps were made in all."""
    _set(model, steps)


def _set(model: nn.Module, steps: int | None) -> None:
    for part in model.modules():
        if isinstance(part, FollowsSchedules):
            part.set_step(steps)
