"""LAX: a learned control variate for continuous variables."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from lightning_estimators.distributions import check_fixed_support, check_reparameterized, draw, path_through
from lightning_estimators.estimators.base import GradientEstimator
from lightning_estimators.estimators.estimate import Estimate
from lightning_estimators.estimators.relax import evaluate_surrogate, prepare_surrogate
from lightning_estimators.networks import Surrogate
from lightning_estimators.noise import Coupling
from lightning_estimators.objectives import Objective
from lightning_estimators.objectives.observed import observed_actions

__all__ = ["LAX"]


class LAX(GradientEstimator):
    r"""Estimates the gradient as $[f(z) - r_\phi(z)] \nabla \log q_\theta(z) + \nabla r_\phi(z_\theta(\varepsilon))$.

    Unbiased for every r; φ minimises the variance. Requirements: a q with `rsample` and `log_prob`, whose support does
    not depend on what is learned; nothing of f.
    Cost: one evaluation of f per sample; one of $r_\phi$ with its gradient, and a second derivative of $r_\phi$.

    Args:
        surrogate: $r_\phi$, as for `RELAX`.
        num_samples: Samples per batch element.
        coupling: How these depend on one another; see `GradientEstimator`.

    Raises:
        TypeError: q has no `rsample`, or one of discrete values; its support moves with what is learned.
        ValueError: The surrogate answers with another shape.

    Source: Grathwohl et al. (2018), *Backpropagation through the void*, eq. 7, https://arxiv.org/abs/1711.00123.

    Example:
        >>> import torch
        >>> from torch.distributions import Laplace
        >>> _ = torch.manual_seed(0)
        >>> loc, lax = torch.zeros(64, requires_grad=True), LAX(Surrogate(hidden=[10]))
        >>> lax(Laplace(loc, torch.ones(64)), lambda z: (z - 1).abs()).mean().backward()
        >>> loc.grad.shape, all(p.grad is not None for p in lax.parameters())
        (torch.Size([64]), True)
    """

    families: ClassVar[tuple[type[Distribution], ...]] = (Distribution,)
    learns_variance: ClassVar[bool] = True
    takes_observed_costs: ClassVar[bool] = True

    def __init__(
        self, surrogate: nn.Module | None = None, num_samples: int = 1, coupling: Coupling = "independent"
    ) -> None:
        super().__init__(num_samples, coupling)
        self.surrogate = Surrogate() if surrogate is None else surrogate

    def check(self, q: Distribution) -> None:
        """Refuse families without an unbiased `rsample`, and supports that move with what is learned."""
        super().check(q)
        check_reparameterized(q, "LAX")
        check_fixed_support(q, "LAX")

    def prepare(self, q: Distribution, context: Tensor | None = None) -> None:
        """Check q and size the surrogate."""
        super().prepare(q, context)
        prepare_surrogate(self.surrogate, q, context)

    def is_unbiased(self, q: Distribution) -> bool:
        """It always is."""
        return True

    def evaluations(self, q: Distribution) -> tuple[int, int]:
        """Return one evaluation of f per sample."""
        return self.num_samples, 0

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Combine the score function of f - r with the pathwise gradient of r."""
        z = observed_actions(f)
        if z is None:
            path, log_density = draw(q, attached=True)
            z = path.detach()
        else:
            path, log_density = path_through(q, z), q.log_prob(z)
        value = f(z)
        parameters = list(leaves.values())
        learns = self.learns()
        r = evaluate_surrogate(self.surrogate, q, path, context)
        pathwise = torch.autograd.grad(
            r.sum(), parameters, create_graph=learns, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        scores = torch.autograd.grad(log_density.sum(), parameters, allow_unused=True, materialize_grads=True)
        signal = value.detach() - (r if learns else r.detach())
        gradients = {
            name: signal.reshape(signal.shape + (1,) * (score.ndim - signal.ndim)) * score + pathwise[i]
            for i, (name, score) in enumerate(zip(leaves, scores, strict=True))
        }
        surrogate_loss = None
        if learns:
            lead = len(q.batch_shape)
            squares = [g.square().reshape(*g.shape[:lead], g.shape[lead:].numel()).sum(-1) for g in gradients.values()]
            surrogate_loss = torch.stack(squares).sum(0)
        return Estimate(value, gradients, surrogate_loss)
