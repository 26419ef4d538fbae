"""RODEO: leave-one-out, with control variates made by discrete Stein operators of a small learned function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, OneHotCategorical

from lightning_estimators.arguments import check_finite
from lightning_estimators.distributions import base_distribution, probabilities, sample
from lightning_estimators.estimators.base import GradientEstimator
from lightning_estimators.estimators.cost_gradient import value_and_gradient
from lightning_estimators.estimators.estimate import Estimate
from lightning_estimators.estimators.relaxation import gradients_of_parameters, score
from lightning_estimators.objectives import Objective

__all__ = ["RODEO"]


ROWS = 4096
"""Points at which the network is evaluated at once on a CPU."""


class RODEO(GradientEstimator):
    r"""Estimates the gradient by the score function, less Stein control variates of a learned function; unbiased.

    The Gibbs operator draws one of the D variables anew, each as likely as another, and gives the mean change of a
    function h: $(A h)(z) = \frac1D \sum_i E[h(z_{-i}, z_i') - h(z)]$ with $z_i' \sim q$, which has mean 0 under q.
    With K samples $z_k$, and $\bar x_{-k}$ the mean of $x_j$ over all j but k,

    $\hat g = \frac1K \sum_k \{[f_k - \overline{(f + \alpha\, A h_1)}_{-k}] \nabla_l \log q(z_k)
    + \beta\, (A [h_2 \nabla_l \log q])(z_k)\}$.

    $h_1, h_2$ are the outputs of one network for the k-th sample. Its inputs come from the other samples, and are two
    numbers wherever it is evaluated: $\bar f_{-k}$, and what their slopes foretell,
    $\frac{1}{K - 1} \sum_{j \ne k} f'(z_j)^T (z - z_j)$. The network, α and β minimise the variance of $\hat g$. At
    α = β = 0, where they start, this is `REINFORCE(LeaveOneOut())`.

    Requirements: an f that is differentiable in z; samples that are independent. Cost: one evaluation of f and one of
    its gradient per sample, and D + 1 of the network (for categoricals one for each class and one more), of which the
    gradient is taken.

    Args:
        network: Maps `(points, 2)` to `(points, 2)`: the two inputs to $h_1$ and $h_2$. By default one hidden layer of
            100 units with LeakyReLU, as in the paper.
        alpha: α, or where it starts if learned.
        beta: β, or where it starts if learned. Where both are 0 the first step trains them only.
        learn_scales: Whether α and β are trained. The network is trained unless it is frozen.
        num_samples: K, samples per batch element, at least 2.

    Raises:
        ValueError: `num_samples` is less than 2; f cannot be differentiated in z; the network answers with another
            shape.

    Source: Shi, Zhou, Hwang, Titsias & Mackey (2022), *Gradient estimation with discrete Stein operators*, section 4,
    https://arxiv.org/abs/2202.09497. Its experiments have Bernoullis; the Gibbs operator is the same for categoricals.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Independent
        >>> _ = torch.manual_seed(0)
        >>> logits, rodeo = torch.zeros(64, 3, requires_grad=True), RODEO()
        >>> loss = rodeo(Independent(Bernoulli(logits=logits), 1), lambda b: (b - 0.45).pow(3).sum(-1))
        >>> loss.mean().backward()
        >>> all(p.grad is not None for p in rodeo.parameters())
        True
    """

    families: ClassVar[tuple[type[Distribution], ...]] = (Bernoulli, OneHotCategorical)
    gradient_of_f: ClassVar[Literal["none", "samples", "relaxed"]] = "samples"
    min_samples: ClassVar[int] = 2
    learns_variance: ClassVar[bool] = True
    needs_independent_samples: ClassVar[bool] = True

    def __init__(
        self,
        network: nn.Module | None = None,
        alpha: float = 0.0,
        beta: float = 0.0,
        learn_scales: bool = True,  # noqa: FBT001
        num_samples: int = 2,
    ) -> None:
        super().__init__(num_samples)
        check_finite(self, alpha=alpha, beta=beta)
        self.alpha = nn.Parameter(torch.tensor(float(alpha)), requires_grad=learn_scales)
        self.beta = nn.Parameter(torch.tensor(float(beta)), requires_grad=learn_scales)
        default = nn.Sequential(nn.Linear(2, 100), nn.LeakyReLU(inplace=True), nn.Linear(100, 2))
        self.network = default if network is None else network

    def is_unbiased(self, q: Distribution) -> bool:
        """It always is."""
        return True

    def prepare(self, q: Distribution, context: Tensor | None = None) -> None:
        """Check q; size what is lazy in the network, and refuse one that answers with another shape."""
        super().prepare(q, context)
        with torch.no_grad():
            self._evaluate(torch.zeros(1, 2, dtype=self.alpha.dtype, device=self.alpha.device))

    def evaluations(self, q: Distribution) -> tuple[int, int]:
        """Return one evaluation of f and one of its gradient per sample."""
        return self.num_samples, self.num_samples

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Combine the leave-one-out estimate and the two control variates."""
        z = sample(q)
        value, slope = value_and_gradient(self, f, z)
        lead, learns = q.batch_shape, self.learns()
        with torch.no_grad():
            centred, moves = score(q, z), _Moves(q, z)
            others = self._others(slope)
            here = _total(others * z, lead) - self._others(_total(slope * z, lead))
            foretold = torch.cat([here.unsqueeze(-1), here.unsqueeze(-1) + moves.of_linear(others)], -1)
            costs = self._others(value.detach()).unsqueeze(-1).expand_as(foretold)
            inputs = torch.stack([costs, foretold], -1)
        with torch.set_grad_enabled(learns):
            h_1, h_2 = self._evaluate(inputs).unbind(-1)
            signal = value.detach() - self._others(value.detach() + self.alpha * moves.mean_change(h_1))
            weight = signal + self.beta * moves.mean_change(h_2)
            of_score = (weight.reshape(*lead, *(1,) * len(q.event_shape)) * centred).mean(0)
            gradient = of_score + self.beta * moves.mean_step(h_2[..., 1:]).mean(0)
            surrogate_loss = _total(gradient.square(), lead[1:]) if learns else None
        return Estimate(value, gradients_of_parameters(q, leaves, gradient), surrogate_loss)

    def extra_repr(self) -> str:
        """Show the settings, α and β as they are now."""
        now = f"alpha={self.alpha.item():.4g}, beta={self.beta.item():.4g}"
        return f"{now}, learn_scales={self.alpha.requires_grad}, {super().extra_repr()}"

    def diagnostics(self) -> dict[str, Tensor]:
        """Return `alpha` and `beta`."""
        return {**super().diagnostics(), "alpha": self.alpha.detach().clone(), "beta": self.beta.detach().clone()}

    def _others(self, x: Tensor) -> Tensor:
        """Return for each sample the mean over the others."""
        return (x.sum(0) - x) / (self.num_samples - 1)

    def _evaluate(self, inputs: Tensor) -> Tensor:
        """Return h_1 and h_2, as the last axis."""
        dtype = next((p.dtype for p in self.network.parameters() if p.is_floating_point()), inputs.dtype)
        rows = inputs.reshape(-1, 2).to(dtype)
        # In chunks that stay in the cache of a CPU: hidden units take many times the memory of all else.
        chunks = torch.split(rows, ROWS) if rows.device.type == "cpu" else (rows,)
        out = torch.cat([self.network(chunk) for chunk in chunks])
        if out.shape != rows.shape:
            raise ValueError(
                f"the network of RODEO must map (points, 2) to (points, 2): for an input of shape {tuple(rows.shape)} "
                f"it returned {tuple(out.shape)}."
            )
        return out.reshape(inputs.shape).to(inputs.dtype)


class _Moves:
    """All points that differ from samples in one variable, flattened to the last axis, and how likely each is drawn.

    A Bernoulli has one other value. Of a categorical all classes count, its own too, which is no change.

    Args:
        q: The distribution, with shape `lead`.
        z: Samples, shape `lead + event_shape`.
    """

    def __init__(self, q: Distribution, z: Tensor) -> None:
        self.lead, self.event, p = q.batch_shape, q.event_shape, probabilities(q).detach()
        self.bits = isinstance(base_distribution(q), Bernoulli)
        self.variables = max(self.event.numel() if self.bits else self.event[:-1].numel(), 1)
        self.z = z
        self.probability = torch.lerp(p, 1 - p, z) if self.bits else p

    def of_linear(self, slope: Tensor) -> Tensor:
        """Return by how much a linear function with that slope changes, shape `lead + (moves,)`."""
        change = slope * (1 - 2 * self.z) if self.bits else slope - (slope * self.z).sum(-1, keepdim=True)
        return change.reshape(*self.lead, self.event.numel())

    def mean_change(self, h: Tensor) -> Tensor:
        """Return (A h)(z), shape `lead`, of a function known at z and, behind it, after each move."""
        change = (h[..., 1:] - h[..., :1]) * self.probability.reshape(*self.lead, self.event.numel())
        return change.sum(-1) / self.variables

    def mean_step(self, h: Tensor) -> Tensor:
        """Return the mean of h after the move times the move itself, shape `lead + event_shape`."""
        weighted = self.probability * h.reshape(*self.lead, *self.event) / self.variables
        if self.bits:
            return weighted * (1 - 2 * self.z)
        return weighted - self.z * weighted.sum(-1, keepdim=True)


def _total(x: Tensor, lead: Sequence[int]) -> Tensor:
    """Return the sum over the event, which is what follows the lead axes."""
    return x.reshape(*lead, math.prod(x.shape[len(lead) :])).sum(-1)
