"""The toy problems of gamma variables: the smallest on which estimators for continuous latents differ."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Gamma, Independent

from lightning_estimators.estimators import GradientEstimator
from lightning_estimators.modules.exact import ExactProblem
from lightning_estimators.modules.latent import check_choice
from lightning_estimators.objectives import ExponentialCost, Objective, SquaredCost

__all__ = ["GammaToyModel"]


class GammaToyModel(ExactProblem):
    r"""Minimises E[f(z)] over log shape and log scale of d independent gamma variables, $z_j \sim \Gamma(k_j, \mu_j)$.

    There are two problems:

    - "squares": $f(z) = \sum_j (z_j - t)^2$, with expectation $\sum_j k_j \mu_j^2 + (k_j \mu_j - t)^2$. The infimum 0
      belongs to the point mass at t, which the variables approach with mean $k \mu = t$ as k grows without bound. At a
      given k the minimum is $t^2 / (k + 1)$ per variable, at $\mu = t / (k + 1)$.
    - "exponentials": $f(z) = \sum_j e^{-t z_j}$, with expectation $\sum_j (1 + t \mu_j)^{-k_j}$. The infimum 0 belongs
      to the point mass at infinity, which the variables approach as k or μ grows.

    Here μ is the *scale*, while torch's `Gamma` takes the rate 1/μ. The costs are `objectives`, so that stochastic
    backpropagation sums its series in closed form. Only the length of the batch matters, not its content: it is the
    number of estimates that a step averages (`datamodules.Toy`).

    Besides what `EstimatorModule` logs, `val/loss` and `test/loss` are the exact expectation. The following figures are
    logged every `Trainer(log_every_n_steps)` batches, at the parameters from which the step starts. Those from
    `toy/log_variance` to `toy/angle` are computed from `num_draws` fresh estimates, which do not affect training.

    - `toy/loss`: the exact expectation.
    - `toy/minimum`: its infimum, 0.
    - `toy/mean`: mean of z, averaged over variables.
    - `toy/minimiser`: the mean of z at the infimum: t for "squares", inf for "exponentials".
    - `toy/deviation`: standard deviation of z, averaged over variables; 0 at the infimum of "squares".
    - `toy/gradient`: exact derivative of the loss with respect to log shapes and log scales, mean over all of them.
    - `toy/log_variance`: natural logarithm of the sample variance of a single estimate of the gradient (one example,
      one parameter), averaged over parameters before the logarithm is taken.
    - `toy/bias`: mean estimate minus exact derivative, averaged over parameters.
    - `toy/bias_z`: root mean square over parameters of the bias in units of its standard error: about 1 if unbiased.
    - `toy/angle`: mean angle in degrees between a single estimate and the exact gradient.

    Args:
        estimator: Estimates the gradient.
        problem: Which f: "squares" or "exponentials".
        target: The number t, positive.
        num_latents: The number d of variables.
        shape: Initial shape k of every variable.
        scale: Initial scale μ of every variable.
        num_draws: Number of fresh estimates behind the logged statistics, at least 2.
        **training: Optimizers and their schedulers, see `EstimatorModule`.

    Raises:
        TypeError: The estimator does not support gamma variables.
        ValueError: A number is out of range, or the problem is unknown.

    Source: Echraibi et al. (2020), *Generalized stochastic backpropagation*, section 6.1, Figures 1 and 2,
    https://hal.science/hal-02968975 (t = .49; d = 1, 10, 100; Adam with learning rate 1e-3; the paper does not say
    where the variables start).

    Example:
        >>> import torch
        >>> from lightning_estimators.estimators import StochasticBackprop
        >>> model = GammaToyModel(StochasticBackprop(), num_latents=2)
        >>> model.exact_loss(), model.exact_gradient()
        (tensor(2.5202), tensor([2.0200, 2.0200, 3.0200, 3.0200]))
        >>> model.loss(torch.zeros(3, 1)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        estimator: GradientEstimator,
        *,
        problem: Literal["squares", "exponentials"] = "squares",
        target: float = 0.49,
        num_latents: int = 1,
        shape: float = 1.0,
        scale: float = 1.0,
        num_draws: int = 1000,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        check_choice("problem", problem, ("squares", "exponentials"))
        for name, count, least in (("num_latents", num_latents, 1), ("num_draws", num_draws, 2)):
            if count < least:
                raise ValueError(f"GammaToyModel needs {name} of at least {least}, got {count}.")
        for name, number in (("target", target), ("shape", shape), ("scale", scale)):
            if not 0 < number < math.inf:
                raise ValueError(f"GammaToyModel needs a positive {name}, got {number}.")
        self.problem, self.target, self.num_draws = problem, target, num_draws
        self.log_shape = nn.Parameter(torch.full((num_latents,), math.log(shape)))
        self.log_scale = nn.Parameter(torch.full((num_latents,), math.log(scale)))
        self.estimator = estimator
        self.estimator.prepare(self.q(*(p.detach().expand(1, -1) for p in self.free_parameters())))

    def free_parameters(self) -> tuple[nn.Parameter, ...]:
        """Return log shape and log scale."""
        return self.log_shape, self.log_scale

    def q(self, *parameters: Tensor) -> Distribution:
        """Return independent gamma variables with these log shapes and log scales."""
        log_shape, log_scale = parameters
        return Independent(Gamma(log_shape.exp(), (-log_scale).exp(), validate_args=False), 1, validate_args=False)

    def cost(self) -> Objective:
        """Return the cost f."""
        return SquaredCost(self.target) if self.problem == "squares" else ExponentialCost(-self.target)

    def exact_loss(self) -> Tensor:
        """Return the exact expectation, a scalar without gradient."""
        k, mu = self._shape_and_scale()
        if self.problem == "squares":
            return (k * mu.square() + (k * mu - self.target).square()).sum()
        return torch.exp(-k * torch.log1p(self.target * mu)).sum()

    def exact_gradient(self) -> Tensor:
        """Return the exact derivatives of the expectation: all with respect to log shape, then all to log scale."""
        k, mu = self._shape_and_scale()
        if self.problem == "squares":
            in_mean = 2 * k * mu * (k * mu - self.target)  # derivative of the second term in log(k μ)
            return torch.cat([k * mu.square() + in_mean, 2 * k * mu.square() + in_mean])
        log_base = torch.log1p(self.target * mu)
        return -torch.cat([log_base, self.target * mu / (1 + self.target * mu)]) * (
            k * torch.exp(-k * log_base)
        ).repeat(2)

    def figures(self) -> dict[str, Tensor]:
        """Return all logged figures, by name without the prefix `toy/`."""
        k, mu = self._shape_and_scale()
        return {
            **super().figures(),
            "minimum": torch.zeros_like(k[0]),
            "mean": (k * mu).mean(),
            "minimiser": torch.full_like(k[0], self.target if self.problem == "squares" else math.inf),
            "deviation": (k.sqrt() * mu).mean(),
        }

    def predict_step(self, batch: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Return shapes k and scales μ, repeated for each row of the batch, each of shape `(B, num_latents)`."""
        k, mu = self._shape_and_scale()
        return k.expand(len(batch), -1), mu.expand(len(batch), -1)

    def _shape_and_scale(self) -> tuple[Tensor, Tensor]:
        return self.log_shape.detach().exp(), self.log_scale.detach().exp()
