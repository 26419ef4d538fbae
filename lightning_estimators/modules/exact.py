"""The base class of toy problems with a known loss and gradient, with which estimates are compared during training."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from lightning_estimators.estimators import GradientEstimator
from lightning_estimators.logged_steps import step_is_logged
from lightning_estimators.modules.base import EstimatorModule
from lightning_estimators.moments import GradientMoments
from lightning_estimators.objectives import Objective

__all__ = ["ExactProblem"]

_DRAWS = 2**20  # number of the noise stream of the logged statistics, far from the numbers callbacks use


class ExactProblem(EstimatorModule, ABC):
    """Minimises E[f(z)] over the parameters of q, and logs how estimates of the gradient compare with the exact one.

    Only the length of the batch matters, not its content: it is the number of estimates that a step averages
    (`datamodules.Toy`).

    Besides what `EstimatorModule` logs, `val/loss` and `test/loss` are the exact expectation. The following figures are
    logged every `Trainer(log_every_n_steps)` batches, at the parameters from which the step starts. The last four are
    computed from `num_draws` fresh estimates, which do not affect training.

    - `toy/loss`: the exact expectation.
    - `toy/gradient`: exact derivative of the loss with respect to the parameters, mean over parameters.
    - `toy/log_variance`: natural logarithm of the sample variance of a single estimate of the gradient (one example,
      one parameter), averaged over parameters before the logarithm is taken. For an exact estimator, whose variance is
      0, it is the logarithm of the smallest positive number (of float32 and not subnormal), -87.
    - `toy/bias`: mean estimate minus exact derivative, averaged over parameters.
    - `toy/bias_z`: root mean square over parameters of the bias in units of its standard error: about 1 if unbiased.
    - `toy/angle`: mean angle in degrees between a single estimate and the exact gradient.

    Implementing one:

    1. In `__init__`, after `super().__init__(...)`, set `num_draws` and `estimator`, build the parameters, and call
       `estimator.prepare`.
    2. Implement the abstract methods; extend `figures` to log more.
    """

    estimator: GradientEstimator
    num_draws: int

    @abstractmethod
    def free_parameters(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters to learn, in the order of the arguments of `q`, each of shape `(num_latents,)`."""

    @abstractmethod
    def q(self, *parameters: Tensor) -> Distribution:
        """Return the distribution of z given its parameters, each of shape `batch_shape + (num_latents,)`."""

    @abstractmethod
    def cost(self) -> Objective:
        """Return the cost f."""

    @abstractmethod
    def exact_loss(self) -> Tensor:
        """Return the exact expectation, a scalar without gradient."""

    @abstractmethod
    def exact_gradient(self) -> Tensor:
        """Return the exact derivatives with respect to the parameters, concatenated, without gradient."""

    def loss(self, batch: Tensor) -> Tensor:
        """Return one estimate of the loss per row of the batch, whose content does not matter."""
        rows = (parameter.expand(len(batch), -1) for parameter in self.free_parameters())
        estimate: Tensor = self.estimator(self.q(*rows), self.cost())
        return estimate

    def sample_gradients(self, num_draws: int) -> Tensor:
        """Return independent estimates of the gradient, of shape `(num_draws,)` + the shape of `exact_gradient()`.

        Noise comes from torch's generator. Training is not affected otherwise: the estimates are made by a copy of the
        estimator in evaluation mode.
        """
        estimator = self._copy_of_estimator()
        rows = [p.detach().expand(num_draws, -1).clone().requires_grad_() for p in self.free_parameters()]
        with torch.enable_grad():
            loss = estimator(self.q(*rows), self.cost())
            return torch.cat(torch.autograd.grad(loss.sum(), rows), -1)

    def gradient_statistics(self) -> dict[str, Tensor]:
        """Return the logged figures about the gradient, by name without the prefix `toy/`."""
        exact, draws = self.exact_gradient(), self.sample_gradients(self.num_draws)
        moments = GradientMoments()
        moments.update({"gradient": draws})
        variance, bias = moments.variance("gradient"), moments.mean("gradient") - exact
        tiny = torch.finfo(draws.dtype).tiny
        error = moments.standard_error("gradient")
        cosine = torch.nn.functional.cosine_similarity(draws, exact.expand_as(draws), dim=-1, eps=tiny)
        # The only error of an exact estimator is rounding, and its standard error may be 0.
        rounding = (torch.finfo(draws.dtype).eps * exact.abs()).clamp_min(tiny)
        return {
            "gradient": exact.mean(),
            "log_variance": variance.mean().clamp_min(tiny).log(),
            "bias": bias.mean(),
            "bias_z": (bias / torch.maximum(error, rounding)).square().mean().sqrt(),
            "angle": torch.rad2deg(torch.acos(cosine.clamp(-1, 1))).mean(),
        }

    def figures(self) -> dict[str, Tensor]:
        """Return all logged figures, by name without the prefix `toy/`."""
        return {"loss": self.exact_loss(), **self.gradient_statistics()}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Log the figures at the parameters from which the step starts."""
        super().on_train_batch_start(batch, batch_idx)
        if not step_is_logged(self.trainer, batch_idx):
            return
        with self.noise(_DRAWS):
            figures = self.figures()
        self.log_dict({f"toy/{name}": figure for name, figure in figures.items()}, on_step=True, on_epoch=False)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log `val/loss`."""
        self.log("val/loss", self.exact_loss(), prog_bar=True, batch_size=len(batch))

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log `test/loss`."""
        self.log("test/loss", self.exact_loss(), batch_size=len(batch))

    def _copy_of_estimator(self) -> GradientEstimator:
        return copy.deepcopy(self.estimator).eval().requires_grad_(requires_grad=False)
