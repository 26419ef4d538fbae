"""What straight-through estimators share: f at the sample, and the derivative of something smooth in its place."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, OneHotCategorical

from lightning_estimators.distributions import sample
from lightning_estimators.estimators.base import GradientEstimator
from lightning_estimators.estimators.cost_gradient import check_differentiable
from lightning_estimators.estimators.estimate import Estimate
from lightning_estimators.objectives import Objective

__all__ = ["StraightThroughEstimator"]


class StraightThroughEstimator(GradientEstimator):
    r"""Evaluates f at a sample z of q, and backpropagates as if z were a smooth function s of the parameters: biased.

    $\hat g = (\partial s / \partial\theta)^T f'(z)$. The value is the cost of the discrete model. One forward and one
    backward pass through f serve the parameters of q and those of f.

    Implementing one: `stand_in` returns s; only its derivative counts. Set `families` if they are others.
    """

    families: ClassVar[tuple[type[Distribution], ...]] = (Bernoulli, OneHotCategorical)
    gradient_of_f: ClassVar[Literal["none", "samples", "relaxed"]] = "samples"

    @abstractmethod
    def stand_in(self, q: Distribution, z: Tensor) -> Tensor:
        """Return what is differentiated in place of the sample, attached to the parameters of q, of any finite value.

        Args:
            q: The distribution.
            z: The sample, shape `q.batch_shape + q.event_shape`, without gradient.

        Returns:
            Tensor of the shape of z.
        """

    def is_unbiased(self, q: Distribution) -> bool:
        """It is not, but for an f of the kind that the class names."""
        return False

    def evaluations(self, q: Distribution) -> tuple[int, int]:
        """Return one evaluation of f and one of its gradient per sample."""
        return self.num_samples, self.num_samples

    def is_pathwise(self, q: Distribution) -> bool:
        """The value carries the gradient."""
        return True

    def is_twice_differentiable(self, q: Distribution) -> bool:
        """It is not: the stand-in has the first derivative only."""
        return False

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Return f at the sample, attached to the stand-in."""
        z = sample(q)
        if torch.is_grad_enabled():
            smooth = self.stand_in(q, z)
            z = z + (smooth - smooth.detach())
        value = f(z)
        check_differentiable(self, value, z)
        return Estimate(value)
