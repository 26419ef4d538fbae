"""The Concrete (Gumbel-softmax) relaxation, biased, with its straight-through form."""

from __future__ import annotations

from contextlib import nullcontext
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, OneHotCategorical

from lightning_estimators.estimators.base import GradientEstimator
from lightning_estimators.estimators.cost_gradient import check_differentiable
from lightning_estimators.estimators.elsewhere import evaluated_elsewhere
from lightning_estimators.estimators.estimate import Estimate
from lightning_estimators.estimators.relaxation import relaxation_of
from lightning_estimators.estimators.temperature import HasTemperature
from lightning_estimators.noise import Coupling
from lightning_estimators.objectives import Objective
from lightning_estimators.schedules import Schedule

__all__ = ["Concrete"]


class Concrete(HasTemperature, GradientEstimator):
    r"""Differentiates f at relaxed samples: $\nabla_\theta f(\sigma_\lambda(z))$; biased.

    Bernoulli: $\sigma((l + \operatorname{logit} u) / \lambda)$; categorical:
    $\operatorname{softmax}((l + G) / \lambda)$. The value is f at the relaxed sample; in evaluation mode without
    gradients, as in validation, it is f at the hard sample, the cost of the discrete model. With `straight_through` f
    is evaluated at the hard sample and only its gradient passes through the relaxed one. The bias goes to zero with λ,
    the variance to infinity.

    Requirements: an f that is differentiable in z. Cost: one evaluation of f and of its gradient per sample.

    Args:
        temperature: λ, or where it starts if learned, or a `Schedule` that it follows; positive.
        learn_temperature: Whether log λ is trained, on the relaxed objective itself (its gradient is not zero here,
            and the variance alone would send λ to infinity), so with the sign of the loss.
        straight_through: Whether f sees the hard sample.
        num_samples: Samples per batch element.
        coupling: How these depend on one another; see `GradientEstimator`.

    Raises:
        ValueError: The temperature is not positive; f cannot be differentiated in z.

    Source: Maddison, Mnih & Teh (2017), *The Concrete distribution*, https://arxiv.org/abs/1611.00712; Jang, Gu & Poole
    (2017), *Categorical reparameterization with Gumbel-softmax*, eq. 2 and section 2.2,
    https://arxiv.org/abs/1611.01144.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Independent
        >>> _ = torch.manual_seed(0)
        >>> logits = torch.zeros(1, 3, requires_grad=True)
        >>> loss = Concrete(temperature=0.3)(Independent(Bernoulli(logits=logits), 1), lambda b: b.square().sum(-1))
        >>> loss.mean().backward()
        >>> bool((logits.grad > 0).all())
        True
    """

    families: ClassVar[tuple[type[Distribution], ...]] = (Bernoulli, OneHotCategorical)
    gradient_of_f: ClassVar[Literal["none", "samples", "relaxed"]] = "relaxed"

    def __init__(
        self,
        temperature: float | Schedule = 0.5,
        learn_temperature: bool = False,  # noqa: FBT001
        straight_through: bool = False,  # noqa: FBT001
        num_samples: int = 1,
        coupling: Coupling = "independent",
    ) -> None:
        super().__init__(num_samples, coupling)
        self.straight_through = straight_through
        self.start_temperature(temperature, learn=learn_temperature)

    def is_unbiased(self, q: Distribution) -> bool:
        """It never is: the bias vanishes with the temperature only."""
        return False

    def evaluations(self, q: Distribution) -> tuple[int, int]:
        """Return one evaluation of f and one of its gradient per sample."""
        return self.num_samples, self.num_samples

    def is_pathwise(self, q: Distribution) -> bool:
        """The value carries the gradient."""
        return True

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Return f at the relaxed (or straight-through) sample."""
        relaxation = relaxation_of(q)
        z = relaxation.draw()
        if not self.training and not torch.is_grad_enabled():
            return Estimate(f(relaxation.harden(z)))
        soft = relaxation.soften(z, self.log_temperature.exp())
        if self.straight_through:
            soft = relaxation.harden(z) + (soft - soft.detach())
        with nullcontext() if self.straight_through else evaluated_elsewhere(q, f):
            value = f(soft)
        check_differentiable(self, value, soft)
        return Estimate(value)

    def diagnostics(self) -> dict[str, Tensor]:
        """Return `temperature`."""
        return {**super().diagnostics(), "temperature": self.log_temperature.detach().exp()}

    def extra_repr(self) -> str:
        """Show the settings."""
        now = f"temperature={self.log_temperature.exp().item():.4g}, straight_through={self.straight_through}"
        return f"{now}, learn_temperature={self.log_temperature.requires_grad}, {super().extra_repr()}"
