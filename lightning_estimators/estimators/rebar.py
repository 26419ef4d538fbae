"""REBAR: the cost itself, on the Concrete relaxation, as control variate."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from lightning_estimators.arguments import check_finite
from lightning_estimators.estimators.attach import attach_gradients
from lightning_estimators.estimators.control_variate import ControlVariate
from lightning_estimators.estimators.cost_gradient import check_differentiable
from lightning_estimators.estimators.relaxation import relaxation_of
from lightning_estimators.estimators.temperature import HasTemperature
from lightning_estimators.noise import Coupling
from lightning_estimators.objectives import Objective
from lightning_estimators.schedules import Schedule

__all__ = ["REBAR"]


class REBAR(HasTemperature, ControlVariate):
    r"""Estimates the gradient with the control variate $c(z) = \eta f(\sigma_\lambda(z))$; unbiased.

    $\hat g = [f(b) - \eta f(\sigma_\lambda(\tilde z))] \nabla_l \log q(b) + \eta \nabla_l f(\sigma_\lambda(z))
    - \eta \nabla_l f(\sigma_\lambda(\tilde z))$; η and log λ minimise the variance of $\hat g$.

    Requirements: an f that is differentiable at relaxed samples. Cost: three evaluations of f and two of its gradient
    per sample, and a second derivative while η or λ is learned.

    Args:
        temperature: λ, or where it starts if learned, or a `Schedule` that it follows; positive.
        eta: η, or where it starts if learned.
        learn_temperature: Whether log λ is trained.
        learn_eta: Whether η is trained.
        num_samples: Samples per batch element.
        coupling: How these depend on one another; see `GradientEstimator`.

    Raises:
        ValueError: The temperature is not positive; f cannot be differentiated at relaxed samples.

    Source: Tucker et al. (2017), *REBAR: low-variance, unbiased gradient estimates for discrete latent variable
    models*, https://arxiv.org/abs/1703.07370. It is eq. 9 in the draft of Grathwohl et al. (2018), whose first factor
    must read f(H(z)).

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Independent
        >>> _ = torch.manual_seed(0)
        >>> logits, rebar = torch.zeros(64, 3, requires_grad=True), REBAR()
        >>> loss = rebar(Independent(Bernoulli(logits=logits), 1), lambda b: (b - 0.45).square().sum(-1))
        >>> loss.mean().backward()
        >>> logits.grad.shape, sorted(name for name, p in rebar.named_parameters() if p.grad is not None)
        (torch.Size([64, 3]), ['eta', 'log_temperature'])
    """

    gradient_of_f: ClassVar[Literal["none", "samples", "relaxed"]] = "relaxed"

    def __init__(
        self,
        temperature: float | Schedule = 0.5,
        eta: float = 1.0,
        learn_temperature: bool = True,  # noqa: FBT001
        learn_eta: bool = True,  # noqa: FBT001
        num_samples: int = 1,
        coupling: Coupling = "independent",
    ) -> None:
        super().__init__(num_samples, coupling)
        check_finite(self, eta=eta)
        self.start_temperature(temperature, learn=learn_temperature)
        self.eta = nn.Parameter(torch.tensor(float(eta)), requires_grad=learn_eta)

    def evaluations(self, q: Distribution) -> tuple[int, int]:
        """Return three evaluations of f and two of its gradient per sample."""
        return 3 * self.num_samples, 2 * self.num_samples

    def control_variate(self, q: Distribution, z: Tensor, f: Objective, context: Tensor | None) -> Tensor:
        """Return η f(σ_λ(z))."""
        soft = relaxation_of(q).soften(z, self.log_temperature.exp())
        value = f(soft)
        check_differentiable(self, value, soft)
        if z.requires_grad and not self.log_temperature.requires_grad:
            # Nothing that is learned needs a second derivative of f: keep its first as numbers, without a graph.
            (slope,) = torch.autograd.grad(value, z, torch.ones_like(value))
            value = attach_gradients(value.detach(), [slope], [z])
        return self.eta * value

    def extra_repr(self) -> str:
        """Show the settings, η and λ as they are now."""
        learned = f"learn_temperature={self.log_temperature.requires_grad}, learn_eta={self.eta.requires_grad}"
        now = f"temperature={self.log_temperature.exp().item():.4g}, eta={self.eta.item():.4g}"
        return f"{now}, {learned}, {super().extra_repr()}"

    def diagnostics(self) -> dict[str, Tensor]:
        """Return `eta` and `temperature`."""
        own = {"eta": self.eta.detach().clone(), "temperature": self.log_temperature.detach().exp()}
        return {**super().diagnostics(), **own}
