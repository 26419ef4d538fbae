"""Gumbel-Rao: the straight-through Gumbel-softmax, averaged over the noise that the sample leaves open."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from lightning_estimators.estimators.relaxation import relaxation_of
from lightning_estimators.estimators.straight_through_estimator import StraightThroughEstimator
from lightning_estimators.estimators.temperature import HasTemperature
from lightning_estimators.noise import Coupling
from lightning_estimators.schedules import Schedule

__all__ = ["GumbelRao"]


class GumbelRao(HasTemperature, StraightThroughEstimator):
    r"""Averages the slope of the straight-through Gumbel-softmax over relaxations with the same sample: biased.

    $\hat g = \frac1M \sum_m [\partial \sigma_\lambda(z_m) / \partial l]^T f'(b)$ with $z_m \sim z \mid b$ at fixed
    noise (Bernoulli: $\sigma_\lambda(z) = \sigma(z / \lambda)$, categorical: $\operatorname{softmax}(z / \lambda)$).
    It has the mean, and so the bias, of `Concrete(straight_through=True)`, and less variance: that averages over the
    noise with one draw, this with M, at no further evaluation of f. It makes low temperatures, of little bias, usable.

    Requirements: an f that is differentiable in z. Cost: one evaluation of f and of its gradient per sample, and M
    softmaxes of the logits.

    Args:
        temperature: λ, or where it starts if learned, or a `Schedule` that it follows; positive.
        num_relaxations: M, relaxations for each sample. Paulus et al. use 10, 100 and 1000.
        learn_temperature: Whether log λ is trained, on the straight-through objective itself, so with the sign of the
            loss, as that of `Concrete`.
        num_samples: Samples per batch element.
        coupling: How these depend on one another; see `GradientEstimator`.

    Raises:
        ValueError: The temperature is not positive, or `num_relaxations` not at least 1; f cannot be differentiated in
            z.

    Source: Paulus, Maddison & Krause (2021), *Rao-Blackwellizing the straight-through Gumbel-softmax gradient
    estimator*, https://arxiv.org/abs/2010.04838.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Independent
        >>> _ = torch.manual_seed(0)
        >>> logits = torch.zeros(1, 3, requires_grad=True)
        >>> q = Independent(Bernoulli(logits=logits), 1)
        >>> loss = GumbelRao(temperature=0.1)(q, lambda b: b.square().sum(-1))
        >>> loss.mean().backward()
        >>> (logits.grad > 0).sum().item() == loss.item()  # f' is 2 where b = 1, and 0 where b = 0
        True
    """

    def __init__(
        self,
        temperature: float | Schedule = 0.5,
        num_relaxations: int = 10,
        learn_temperature: bool = False,  # noqa: FBT001
        num_samples: int = 1,
        coupling: Coupling = "independent",
    ) -> None:
        super().__init__(num_samples, coupling)
        if num_relaxations < 1:
            raise ValueError(f"GumbelRao needs num_relaxations of at least 1, got {num_relaxations!r}.")
        self.num_relaxations = num_relaxations
        self.start_temperature(temperature, learn=learn_temperature)

    def stand_in(self, q: Distribution, z: Tensor) -> Tensor:
        """Return the mean of relaxations given the sample, each attached to the logits as one with fixed noise is."""
        relaxation = relaxation_of(q)
        logits = relaxation.logits
        given, _ = relaxation.draw_given(z.expand(self.num_relaxations, *z.shape))
        attached = given.detach() + (logits - logits.detach())
        return relaxation.soften(attached, self.log_temperature.exp()).mean(0)

    def diagnostics(self) -> dict[str, Tensor]:
        """Return `temperature`."""
        return {**super().diagnostics(), "temperature": self.temperature}

    def extra_repr(self) -> str:
        """Show the settings."""
        now = f"temperature={self.temperature.item():.4g}, num_relaxations={self.num_relaxations}"
        return f"{now}, learn_temperature={self.learn_temperature}, {super().extra_repr()}"
