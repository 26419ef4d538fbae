"""The temperature of a relaxation: learned, fixed or scheduled, and set anew at any time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_estimators.estimators.relaxation import check_temperature
from lightning_estimators.schedules import FollowsSchedules, Schedule

__all__ = ["HasTemperature"]


class HasTemperature(FollowsSchedules):
    """Mixin of estimators with a temperature λ, kept as the parameter `log_temperature`.

    λ is learned, or fixed, or follows a `Schedule`. Assigning `estimator.temperature = 0.1` sets one that follows none;
    `estimator.learn_temperature = False` stops training it.

    Implementing one: call `start_temperature` in the constructor.
    """

    log_temperature: nn.Parameter
    temperature_schedule: Schedule | None

    def start_temperature(self, temperature: float | Schedule, *, learn: bool) -> None:
        """Set up λ.

        Args:
            temperature: λ, where it starts if learned, or the schedule that it follows.
            learn: Whether log λ is trained.

        Raises:
            ValueError: It is not positive, or shall be learned and follow a schedule.
        """
        schedule = temperature if isinstance(temperature, Schedule) else None
        for value in (temperature,) if not isinstance(temperature, Schedule) else temperature.ends():
            check_temperature(self, value)
        self.temperature_schedule = schedule
        start = temperature.value() if isinstance(temperature, Schedule) else temperature
        self.log_temperature = nn.Parameter(torch.tensor(math.log(start)), requires_grad=False)
        self.learn_temperature = learn

    @property
    def temperature(self) -> Tensor:
        """λ as it is now, a detached 0-d tensor."""
        return self.log_temperature.detach().exp()

    @temperature.setter
    def temperature(self, value: float) -> None:
        if self.temperature_schedule is not None:
            raise ValueError(
                f"the temperature of this {type(self).__name__} follows {self.temperature_schedule}, which would set "
                "it anew after the next step. Give the constructor a number to set it by hand."
            )
        self._set_temperature(value)

    @property
    def learn_temperature(self) -> bool:
        """Whether λ is trained."""
        return self.log_temperature.requires_grad

    @learn_temperature.setter
    def learn_temperature(self, value: bool) -> None:
        if value and self.temperature_schedule is not None:
            raise ValueError(
                f"the temperature of {type(self).__name__} follows a schedule, so it cannot be learned too: set "
                "learn_temperature=False, or give a number to start from."
            )
        self.log_temperature.requires_grad_(value)

    def set_step(self, steps: int | None) -> None:
        """Take up the temperature of after so many optimizer steps in all, or of one more than now if None."""
        schedule = self.temperature_schedule
        if schedule is not None:
            steps = int(schedule.steps_done) + 1 if steps is None else steps
            schedule.steps_done.fill_(steps)
            self._set_temperature(schedule.at(steps))

    def _set_temperature(self, value: float) -> None:
        check_temperature(self, value)
        with torch.no_grad():
            self.log_temperature.fill_(math.log(value))
