"""The pathwise gradient: reparameterization, implicit where torch has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.distributions import (
    Beta,
    Dirichlet,
    Distribution,
    FisherSnedecor,
    Gamma,
    StudentT,
    TransformedDistribution,
    Wishart,
)

from lightning_estimators.distributions import (
    base_distribution,
    check_no_hidden_parameters,
    check_reparameterized,
    draw,
    has_small_concentration,
    rebuild,
    reparameterized_sample,
)
from lightning_estimators.estimators.base import GradientEstimator
from lightning_estimators.estimators.cost_gradient import check_differentiable
from lightning_estimators.estimators.estimate import Estimate
from lightning_estimators.objectives import Objective

__all__ = ["Pathwise"]


class Pathwise(GradientEstimator):
    r"""Differentiates f along the sample: $\nabla_\theta f(z_\theta(\varepsilon))$, `q.rsample()`.

    Unbiased where f is continuous and differentiable almost everywhere. Requirements: a q with `rsample` (normal,
    Laplace, gamma, beta, Dirichlet, ...), an f that is differentiable in z. Cost: one evaluation of f and of its
    gradient per sample.

    Args:
        num_samples: Samples per batch element.
        coupling: How these depend on one another; see `GradientEstimator`.

    Raises:
        TypeError: q has no `rsample`, or one of discrete values.
        ValueError: f cannot be differentiated in z.

    Source: Kingma & Welling (2014), *Auto-encoding variational Bayes*, https://arxiv.org/abs/1312.6114; for implicit
    derivatives Figurnov, Mohamed & Mnih (2018), *Implicit reparameterization gradients*,
    https://arxiv.org/abs/1805.08498.

    Example:
        >>> import torch
        >>> from torch.distributions import Gamma
        >>> _ = torch.manual_seed(0)
        >>> rate = torch.ones(10000, requires_grad=True)
        >>> Pathwise()(Gamma(torch.tensor(3.0), rate), lambda z: z).sum().backward()
        >>> round(rate.grad.mean().item(), 1)  # d/d rate of 3 / rate
        -3.0
    """

    families: ClassVar[tuple[type[Distribution], ...]] = (Distribution,)
    gradient_of_f: ClassVar[Literal["none", "samples", "relaxed"]] = "samples"

    def check(self, q: Distribution) -> None:
        """Refuse families without an unbiased `rsample`."""
        super().check(q)
        check_reparameterized(q, "Pathwise")

    def is_unbiased(self, q: Distribution) -> bool:
        """It always is."""
        return True

    def evaluations(self, q: Distribution) -> tuple[int, int]:
        """Return one evaluation of f and one of its gradient per sample."""
        return self.num_samples, self.num_samples

    def is_pathwise(self, q: Distribution) -> bool:
        """The value carries the gradient."""
        return True

    def is_twice_differentiable(self, q: Distribution) -> bool:
        """Whether the sample is an explicit function of the parameters; implicit derivatives have no derivative."""
        base = base_distribution(q)
        while isinstance(base, TransformedDistribution):
            base = base_distribution(base.base_dist)
        return not isinstance(base, Gamma | Beta | Dirichlet | StudentT | FisherSnedecor | Wishart)

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Return f at a sample that is attached to the parameters."""
        z = reparameterized_sample(q) if self.is_twice_differentiable(q) else _implicit_sample(q, leaves)
        z = z.view_as(z)  # a node of its own: f may reach the parameters another way
        value = f(z)
        check_differentiable(self, value, z)
        return Estimate(value)


def _implicit_sample(q: Distribution, parameters: dict[str, Tensor]) -> Tensor:
    """Draw a sample whose derivatives in the parameters are numbers.

    Implicit derivatives have none themselves, and fail when they are asked for one: as an estimator around this one
    does, whose control variate is the cost and whose own parameters learn from the derivative of its gradient.
    """
    leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
    on_leaves = rebuild(q, leaves)
    check_no_hidden_parameters(q)
    path = draw(on_leaves, attached=True)[0] if has_small_concentration(on_leaves) else on_leaves.rsample()
    z: Tensor = _Implicit.apply(_Path(path, list(leaves.values())), *parameters.values())
    return z


@dataclass
class _Path:
    """Hides a sample and the parameters it was drawn with from autograd."""

    sample: Tensor
    leaves: list[Tensor]


class _Implicit(torch.autograd.Function):
    """The sample; sends the product of the upstream gradient and its derivatives to each parameter."""

    @staticmethod
    def forward(ctx: Any, path: _Path, *parameters: Tensor) -> Tensor:
        ctx.path = path
        return path.sample.detach()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = torch.autograd.grad(
            ctx.path.sample,
            ctx.path.leaves,
            upstream,
            retain_graph=True,
            create_graph=torch.is_grad_enabled(),  # linear in the upstream gradient, which may be differentiated
            allow_unused=True,
        )
        return (None, *gradients)
