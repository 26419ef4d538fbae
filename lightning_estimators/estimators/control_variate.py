"""What REBAR, RELAX and relaxed REBAR share: a control variate that is evaluated on relaxations."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, OneHotCategorical

from lightning_estimators.estimators.base import GradientEstimator
from lightning_estimators.estimators.estimate import Estimate
from lightning_estimators.estimators.relaxation import gradients_of_parameters, relaxation_of, score
from lightning_estimators.noise import CommonNoise
from lightning_estimators.objectives import Objective
from lightning_estimators.objectives.observed import observed_actions

__all__ = ["ControlVariate"]


class ControlVariate(GradientEstimator):
    r"""Estimates the gradient by the score function with a control variate c on the relaxation of the sample:

    $\hat g = [f(b) - c(\tilde z)]\, \nabla_l \log q(b) + \nabla_l c(z) - \nabla_l c(\tilde z)$,
    with b = H(z) and $\tilde z \sim z \mid b$. Unbiased for every c; own parameters minimise $\hat g^2$.

    Implementing one: `control_variate`, differentiable in z and in own parameters.

    Source: Grathwohl et al. (2018), *Backpropagation through the void*, eq. 8, https://arxiv.org/abs/1711.00123. In its
    draft these are eqs. 9 and 10, where the first factor of eq. 9 must read f(H(z)).
    """  # noqa: D415

    families: ClassVar[tuple[type[Distribution], ...]] = (Bernoulli, OneHotCategorical)
    learns_variance: ClassVar[bool] = True

    @abstractmethod
    def control_variate(self, q: Distribution, z: Tensor, f: Objective, context: Tensor | None) -> Tensor:
        """Return c(z).

        Args:
            q: The distribution z relaxes (for its family and shapes).
            z: Unconstrained relaxations, `sample_shape + q.batch_shape + q.event_shape`.
            f: The cost.
            context: Broadcastable to `q.batch_shape + (features,)`, or None.

        Returns:
            Tensor of shape `sample_shape + q.batch_shape`.
        """

    def is_unbiased(self, q: Distribution) -> bool:
        """It always is."""
        return True

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Evaluate f on the hard sample, c on both relaxations at once, and combine them."""
        with torch.no_grad():  # derivatives in the logits are written down, so none has a graph of its own
            relaxation = relaxation_of(q)
            b = observed_actions(f)
            # Given the sample, z is distributed as if it had been drawn first.
            z = relaxation.draw() if b is None else relaxation.draw_given(b)[0]
            b = relaxation.harden(z) if b is None else b
            z_given_b, slope = relaxation.draw_given(b)
            both = torch.stack([z, z_given_b])
        both.requires_grad_()
        noise = CommonNoise(both.device)
        value = f(b)
        # What is random inside f is drawn once for the hard and the relaxed samples: it cancels in f(b) - c.
        learns = self.learns()
        with noise.replay(new_axis=len(q.batch_shape)), _without_compiled_code(if_=learns):
            c = self.control_variate(q, both, f, context)
        in_z, in_z_given_b = self._gradient(c, both, create_graph=learns)
        c_given_b = c[1] if learns else c[1].detach()
        signal = (value.detach() - c_given_b).reshape(value.shape + (1,) * len(q.event_shape))
        pathwise = relaxation.through_normalization(torch.addcmul(in_z, slope, in_z_given_b, value=-1))
        gradient = torch.addcmul(pathwise, signal, score(q, b))
        surrogate_loss = gradient.square().reshape(*value.shape, q.event_shape.numel()).sum(-1) if learns else None
        return Estimate(value, gradients_of_parameters(q, leaves, gradient), surrogate_loss)

    def _gradient(self, c: Tensor, z: Tensor, *, create_graph: bool) -> Tensor:
        if not c.requires_grad:
            raise ValueError(
                f"{type(self).__name__} differentiates its control variate in z, but it has no gradient there: f must "
                "be differentiable at relaxed samples. For a black-box f use RELAX, REINFORCE or StochasticBackprop."
            )
        (gradient,) = torch.autograd.grad(
            c, z, torch.ones_like(c), create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
        return gradient


def _without_compiled_code(*, if_: bool) -> AbstractContextManager[object]:
    """Run compiled decoders and surrogates as they were before: compiled code has no second derivative."""
    return torch.compiler.set_stance("force_eager") if if_ else nullcontext()
