"""The toy problem of Grathwohl et al. (2018): Bernoulli variables whose two outcomes cost almost the same."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent

from lightning_estimators.arguments import check_finite
from lightning_estimators.estimators import GradientEstimator
from lightning_estimators.modules.exact import ExactProblem
from lightning_estimators.objectives import Objective, Separable

__all__ = ["HasControlVariate", "ToyModel"]


@runtime_checkable
class HasControlVariate(Protocol):
    """An estimator with a control variate, the relaxation of the cost, that can be drawn."""

    def control_variate(self, q: Distribution, z: Tensor, f: Objective, context: Tensor | None) -> Tensor:
        """Return the relaxation of f at raw z, shape of z without its event axes (see `estimators.ControlVariate`)."""
        ...


class ToyModel(ExactProblem):
    r"""Minimises $E\big[\frac1D \sum_d (b_d - t)^2\big]$ over the logits of D independent Bernoulli variables.

    Each variable has a logit of its own, which starts at 0; thanks to the mean over variables the loss has the same
    scale for any D. The optimum puts every probability θ at 0 if t < 1/2 and at 1 if t > 1/2. Near t = 1/2 both
    outcomes cost almost the same: at t = .499 the gradient starts at .0005, while one estimate by the plain score
    function is about ±.125. Only the length of the batch matters, not its content: it is the number of estimates that a
    step averages (`datamodules.Toy`).

    Besides what `EstimatorModule` logs, `val/loss` and `test/loss` are the exact expectation. The following figures are
    logged every `Trainer(log_every_n_steps)` batches, at the parameters from which the step starts. The last four are
    computed from `num_draws` fresh estimates, which do not affect training.

    - `toy/loss`: the exact expectation.
    - `toy/theta`: probability of b = 1, mean over variables.
    - `toy/gradient`: exact derivative of the loss with respect to the logits, mean over variables.
    - `toy/log_variance`: natural logarithm of the sample variance of a single estimate of the gradient (one example,
      one variable), averaged over variables before the logarithm is taken. For an exact estimator, whose variance is 0,
      it is the logarithm of the smallest positive number (of float32 and not subnormal), -87.
    - `toy/bias`: mean estimate minus exact derivative, averaged over variables.
    - `toy/bias_z`: root mean square over variables of the bias in units of its standard error: about 1 if unbiased.
    - `toy/angle`: mean angle in degrees between a single estimate and the exact gradient; for one variable it is 180
      times the share of estimates with the wrong sign.

    Every `figure_every_n_epochs` epochs, if there is a TensorBoard logger and the estimator has a method
    `control_variate` (see `HasControlVariate`), the figure `toy/relaxation` shows the relaxation as a function of the
    noise u at the current θ, with the same u for all variables, beside the cost of the discrete sample at that u.

    Args:
        estimator: Estimates the gradient.
        target: The number t.
        num_latents: The number D of variables.
        num_draws: Number of fresh estimates behind the logged statistics, at least 2.
        figure_every_n_epochs: Epochs between figures; 0 for no figures.
        **training: Optimizers and their schedulers, see `EstimatorModule`.

    Raises:
        TypeError: The estimator does not support Bernoulli variables.
        ValueError: A number is too small.

    Source: Grathwohl et al. (2018), *Backpropagation through the void*, section 5.1, and Figures 1 and 2 of its draft
    (t = .499), https://arxiv.org/abs/1711.00123; Tucker et al. (2017), *REBAR: low-variance, unbiased gradient
    estimates for discrete latent variable models* (t = .45), https://arxiv.org/abs/1703.07370.

    Example:
        >>> import torch
        >>> from lightning_estimators.estimators import Enumeration
        >>> model = ToyModel(Enumeration(), target=0.25)
        >>> model.loss(torch.zeros(3, 1)).tolist()
        [0.3125, 0.3125, 0.3125]
        >>> model.exact_gradient()
        tensor([0.1250])
    """

    def __init__(
        self,
        estimator: GradientEstimator,
        *,
        target: float = 0.499,
        num_latents: int = 1,
        num_draws: int = 1000,
        figure_every_n_epochs: int = 10,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        for name, given, least in (
            ("num_latents", num_latents, 1),
            ("num_draws", num_draws, 2),
            ("figure_every_n_epochs", figure_every_n_epochs, 0),
        ):
            if given < least:
                raise ValueError(f"ToyModel needs {name} of at least {least}, got {given}.")
        check_finite(self, target=target)
        self.target, self.num_draws, self.figure_every_n_epochs = target, num_draws, figure_every_n_epochs
        self.logits = nn.Parameter(torch.zeros(num_latents))
        self.estimator = estimator
        self.estimator.prepare(self.q(self.logits.detach().expand(1, -1)))

    def free_parameters(self) -> tuple[nn.Parameter, ...]:
        """Return the logits."""
        return (self.logits,)

    def q(self, *parameters: Tensor) -> Distribution:
        """Return independent Bernoulli variables with these logits."""
        (logits,) = parameters
        return Independent(Bernoulli(logits=logits, validate_args=False), 1, validate_args=False)

    def cost(self) -> Objective:
        """Return f(b), the mean over variables of (b - t)²."""
        return Separable(lambda b: (b - self.target).square() / len(self.logits))

    def exact_loss(self) -> Tensor:
        """Return the exact expectation, a scalar without gradient."""
        p = self._probabilities()
        return (p * (1 - self.target) ** 2 + (1 - p) * self.target**2).mean()

    def exact_gradient(self) -> Tensor:
        """Return the exact derivative of the expectation with respect to the logits, shape `(num_latents,)`."""
        p = self._probabilities()
        return p * (1 - p) * (1 - 2 * self.target) / len(p)

    def figures(self) -> dict[str, Tensor]:
        """Return all logged figures, by name without the prefix `toy/`."""
        return {"theta": self._probabilities().mean(), **super().figures()}

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the probabilities θ, repeated for each row of the batch, shape `(B, num_latents)`."""
        return self._probabilities().expand(len(batch), -1)

    def on_train_epoch_end(self) -> None:
        """Log the figure `toy/relaxation` if it is due."""
        super().on_train_epoch_end()
        every = self.figure_every_n_epochs
        if every == 0 or self.current_epoch % every or not self.trainer.is_global_zero:
            return
        writers = [logger for logger in self.trainer.loggers if isinstance(logger, TensorBoardLogger)]
        figure = self.relaxation_figure() if writers else None
        for writer in writers:
            if figure is not None:
                writer.experiment.add_figure("toy/relaxation", figure, self.global_step)

    def relaxation_curve(self, points: int = 200) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return values of the noise u, and the relaxation and the cost of the discrete sample at each of them.

        The three tensors have shape `(points,)`. If the estimator has no relaxation, the result is None.
        """
        estimator = self._copy_of_estimator()
        if not isinstance(estimator, HasControlVariate):
            return None
        u = (torch.arange(points, device=self.device, dtype=self.logits.dtype) + 0.5) / points
        z = self.logits.detach() + torch.logit(u).unsqueeze(-1)
        q = self.q(self.logits.detach().expand(points, -1))
        with isolate_rng(include_cuda=self.device.type == "cuda"), torch.no_grad():
            relaxed = estimator.control_variate(q, z, self.cost(), None)
        return u, relaxed, self.cost()((z > 0).to(z.dtype))

    def relaxation_figure(self) -> Figure | None:
        """Plot `relaxation_curve`; return None if the estimator has no relaxation."""
        curve = self.relaxation_curve()
        if curve is None:
            return None
        u, relaxed, cost = (values.float().cpu().numpy() for values in curve)
        figure = Figure(figsize=(5, 3.5), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(u, relaxed, label="relaxation")
        axes.plot(u, cost, "--", label="cost of the sample")
        axes.set(xlabel="noise u", ylabel="cost", title=f"θ = {float(self._probabilities().mean()):.4f}")
        axes.legend()
        return figure

    def _probabilities(self) -> Tensor:
        return torch.sigmoid(self.logits.detach())
