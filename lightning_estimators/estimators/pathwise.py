"""The pathwise gradient: reparameterization, implicit where torch has it."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.distributions import Beta, Dirichlet, Distribution, Gamma, StudentT

from lightning_estimators.distributions import base_distribution
from lightning_estimators.estimators.base import Estimate, GradientEstimator
from lightning_estimators.objectives import Objective

__all__ = ["Pathwise"]


class Pathwise(GradientEstimator):
    r"""Differentiates f along the sample: $\nabla_\theta f(z_\theta(\varepsilon))$, `q.rsample()`.

    Unbiased where f is continuous and differentiable almost everywhere. Requirements: a q with `rsample` (normal,
    Laplace, gamma, beta, Dirichlet, ...), an f that is differentiable in z. Cost: one evaluation of f and of its
    gradient per sample.

    Args:
        num_samples: Samples per batch element.

    Raises:
        TypeError: q has no `rsample`.
        ValueError: f cannot be differentiated in z.

    Source: Kingma & Welling (2014), *Auto-encoding variational Bayes*; Figurnov, Mohamed & Mnih (2018), *Implicit
    reparameterization gradients*.

    Example:
        >>> import torch
        >>> from torch.distributions import Gamma
        >>> _ = torch.manual_seed(0)
        >>> rate = torch.ones(10000, requires_grad=True)
        >>> Pathwise()(Gamma(torch.tensor(3.0), rate), lambda z: z).sum().backward()
        >>> round(rate.grad.mean().item(), 1)  # d/d rate of 3 / rate
        -3.0
    """

    unbiased: ClassVar[bool] = True
    families: ClassVar[tuple[type[Distribution], ...]] = (Distribution,)
    needs_gradient: ClassVar[bool] = True
    evaluations: ClassVar[tuple[int, int]] = (1, 1)
    pathwise: ClassVar[bool] = True

    def check(self, q: Distribution) -> None:
        """Refuse families without `rsample`."""
        super().check(q)
        if not q.has_rsample:
            raise TypeError(
                f"Pathwise needs a distribution with rsample, {type(base_distribution(q)).__name__} has none. "
                "Use StochasticBackprop or REINFORCE."
            )

    def is_twice_differentiable(self, q: Distribution) -> bool:
        """Whether the sample is an explicit function of the parameters; implicit derivatives have no derivative."""
        return not isinstance(base_distribution(q), Gamma | Beta | Dirichlet | StudentT)

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Return f at a sample that is attached to the parameters."""
        z = q.rsample()
        value = f(z)
        if z.requires_grad and not value.requires_grad:
            raise ValueError(
                "Pathwise differentiates f, but f(z) has no gradient in z. Use REINFORCE or StochasticBackprop."
            )
        return Estimate(value)
