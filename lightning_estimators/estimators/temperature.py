"""The temperature of a relaxation: learned or fixed, and set anew at any time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_estimators.estimators.relaxation import check_temperature

__all__ = ["HasTemperature"]


class HasTemperature(nn.Module):
    """Mixin of estimators with a temperature λ, kept as the parameter `log_temperature`.

    Assigning `estimator.temperature = 0.1` sets λ, as an annealing schedule does at every step;
    `estimator.learn_temperature = False` stops training it.
    """

    log_temperature: nn.Parameter

    @property
    def temperature(self) -> Tensor:
        """λ as it is now, a detached 0-d tensor."""
        return self.log_temperature.detach().exp()

    @temperature.setter
    def temperature(self, value: float) -> None:
        check_temperature(self, value)
        with torch.no_grad():
            self.log_temperature.fill_(math.log(value))

    @property
    def learn_temperature(self) -> bool:
        """Whether λ is trained."""
        return self.log_temperature.requires_grad

    @learn_temperature.setter
    def learn_temperature(self, value: bool) -> None:
        self.log_temperature.requires_grad_(value)
