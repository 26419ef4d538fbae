"""RELAX: a network as control variate, for costs that are a black box."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from lightning_estimators.distributions import as_one_hot, distribution_parameters
from lightning_estimators.estimators.control_variate import ControlVariate
from lightning_estimators.estimators.relaxation import undecided
from lightning_estimators.estimators.temperature import HasTemperature
from lightning_estimators.networks import Surrogate
from lightning_estimators.noise import Coupling
from lightning_estimators.objectives import Objective
from lightning_estimators.schedules import Schedule

__all__ = ["RELAX"]


class RELAX(HasTemperature, ControlVariate):
    r"""Estimates the gradient with a learned control variate $c(z) = r_\phi(z / \lambda)$ on the relaxation; unbiased.

    $\hat g = [f(b) - c(\tilde z)] \nabla_l \log q(b) + \nabla_l c(z) - \nabla_l c(\tilde z)$; φ and log λ minimise the
    variance of $\hat g$. λ starts at 1, where the network sees z itself, as in Grathwohl et al. (2018). It is one
    number for the scale of the network's input, which every weight of the first layer would have to learn otherwise.

    What Grathwohl et al. (2018) ran on images under the name RELAX has the relaxed cost beside the network in c: that
    is `RelaxedREBAR` here, which needs an f that is differentiable at relaxed samples.

    Requirements: nothing of f, which is evaluated on hard samples only. Cost: one evaluation of f per sample; two of
    $r_\phi$ and its gradient, and a second derivative of $r_\phi$.

    Args:
        surrogate: $r_\phi$: maps the flattened z, with the context behind it if there is one, to one number,
            `(..., features) -> (..., 1)` or `(...)`; twice differentiable in z almost everywhere. What moves kinks is
            missing from the gradient of the variance: with ReLU units hidden layers get an approximation of it, with
            tanh the thing itself; the estimate is unbiased with either. By default
            `networks.Surrogate()`, two hidden layers of 200 ReLU units, sized at the first call.
        temperature: λ, or where it starts if learned, or a `Schedule` that it follows; positive.
        learn_temperature: Whether log λ is trained.
        num_samples: Samples per batch element.
        coupling: How these depend on one another; see `GradientEstimator`.

    Raises:
        ValueError: The temperature is not positive; the surrogate takes or answers with another shape.

    Source: Grathwohl et al. (2018), *Backpropagation through the void*, eq. 8, https://arxiv.org/abs/1711.00123.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Independent
        >>> _ = torch.manual_seed(0)
        >>> logits = torch.zeros(64, 3, requires_grad=True)
        >>> relax = RELAX(surrogate=nn.Sequential(nn.Linear(3, 10), nn.Tanh(), nn.Linear(10, 1)))
        >>> relax(Independent(Bernoulli(logits=logits), 1), lambda b: b.round().prod(-1)).mean().backward()
        >>> all(p.grad is not None for p in relax.parameters())
        True
    """

    takes_observed_costs: ClassVar[bool] = True

    def __init__(
        self,
        surrogate: nn.Module | None = None,
        temperature: float | Schedule = 1.0,
        learn_temperature: bool = True,  # noqa: FBT001
        num_samples: int = 1,
        coupling: Coupling = "independent",
    ) -> None:
        super().__init__(num_samples, coupling)
        self.start_temperature(temperature, learn=learn_temperature)
        self.surrogate = Surrogate() if surrogate is None else surrogate

    def prepare(self, q: Distribution, context: Tensor | None = None) -> None:
        """Check q and size the surrogate."""
        super().prepare(q, context)
        prepare_surrogate(self.surrogate, as_one_hot(q), context)

    def evaluations(self, q: Distribution) -> tuple[int, int]:
        """Return one evaluation of f per sample."""
        return self.num_samples, 0

    def control_variate(self, q: Distribution, z: Tensor, f: Objective, context: Tensor | None) -> Tensor:
        """Return r_φ(z / λ)."""
        return evaluate_surrogate(self.surrogate, q, z * (undecided(q) / self.log_temperature.exp()), context)

    def extra_repr(self) -> str:
        """Show the settings, λ as it is now."""
        now = f"temperature={self.log_temperature.exp().item():.4g}"
        return f"{now}, learn_temperature={self.log_temperature.requires_grad}, {super().extra_repr()}"

    def diagnostics(self) -> dict[str, Tensor]:
        """Return `temperature`."""
        return {**super().diagnostics(), "temperature": self.log_temperature.detach().exp()}


def prepare_surrogate(surrogate: nn.Module, q: Distribution, context: Tensor | None) -> None:
    """Size what is lazy; refuse a surrogate that cannot take z and context, or answers with another shape."""
    like = next(iter(distribution_parameters(q).values()))
    with torch.no_grad():
        evaluate_surrogate(surrogate, q, like.new_zeros(q.batch_shape + q.event_shape), context)


def evaluate_surrogate(surrogate: nn.Module, q: Distribution, z: Tensor, context: Tensor | None) -> Tensor:
    """Return r_φ(z, context), shape of z without its event axes."""
    lead = z.shape[: z.ndim - len(q.event_shape)]
    features = z.reshape(*lead, q.event_shape.numel())
    # In half-precision models the weights are half, and z is not: noise would be too coarse.
    dtype = next((p.dtype for p in surrogate.parameters() if p.is_floating_point()), features.dtype)
    features = features.to(dtype)
    try:
        if context is None:
            out: Tensor = surrogate(features)
        elif isinstance(surrogate, Surrogate):
            out = surrogate(features, context.to(dtype))
        else:
            features = torch.cat([features, context.to(dtype).expand(*lead, context.shape[-1])], -1)
            out = surrogate(features)
    except (RuntimeError, AssertionError) as error:  # torch asserts the width of lazy layers with a loaded state
        behind = "" if context is None else f" and the {context.shape[-1]} of the context behind them"
        raise ValueError(
            f"the surrogate, {type(surrogate).__name__}, cannot be evaluated ({error}). Its input has the "
            f"{q.event_shape.numel()} entries of z{behind}: make its first layer that wide, or torch.nn.LazyLinear, "
            "and give q and the context the same sizes in every call."
        ) from error
    if out.shape != lead and out.shape != (*lead, 1):
        raise ValueError(
            f"a surrogate must map (..., {features.shape[-1]}) to (..., 1) or (...): for an input of shape "
            f"{tuple(features.shape)} it returned {tuple(out.shape)}."
        )
    return out.reshape(lead).to(z.dtype)
