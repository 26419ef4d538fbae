"""Relaxed REBAR: a learned relaxation added to REBAR's."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributions import Distribution

from lightning_estimators.estimators.rebar import REBAR
from lightning_estimators.estimators.relax import evaluate_surrogate, prepare_surrogate
from lightning_estimators.estimators.relaxation import undecided
from lightning_estimators.networks import Surrogate
from lightning_estimators.noise import Coupling
from lightning_estimators.objectives import Objective
from lightning_estimators.schedules import Schedule

__all__ = ["RelaxedREBAR"]


class RelaxedREBAR(REBAR):
    r"""Estimates the gradient with the control variate $c(z) = r_\phi(z) + \eta f(\sigma_\lambda(z))$; unbiased.

    η, log λ and φ minimise the variance. The draft of Grathwohl et al. (2018) fixes η = 1, which `learn_eta=False`
    reproduces; the published version calls this estimator RELAX in its experiments on images.

    Requirements and cost: REBAR's, and two evaluations of $r_\phi$ and its gradients.

    Args:
        surrogate: $r_\phi$, as for `RELAX`.
        temperature: λ, or where it starts if learned, or a `Schedule` that it follows; positive.
        eta: η, or where it starts if learned.
        learn_temperature: Whether log λ is trained.
        learn_eta: Whether η is trained.
        num_samples: Samples per batch element.
        coupling: How these depend on one another; see `GradientEstimator`.

    Raises:
        ValueError: The temperature is not positive; f cannot be differentiated at relaxed samples; the surrogate
            answers with another shape.

    Source: Grathwohl et al. (2018), *Backpropagation through the void*, section 3, https://arxiv.org/abs/1711.00123,
    and section 5.2 of its draft.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Independent
        >>> _ = torch.manual_seed(0)
        >>> logits, estimator = torch.zeros(64, 3, requires_grad=True), RelaxedREBAR(Surrogate(hidden=[10]))
        >>> loss = estimator(Independent(Bernoulli(logits=logits), 1), lambda b: (b - 0.45).square().sum(-1))
        >>> loss.mean().backward()
        >>> all(p.grad is not None for p in estimator.parameters())
        True
    """

    def __init__(
        self,
        surrogate: nn.Module | None = None,
        temperature: float | Schedule = 0.5,
        eta: float = 1.0,
        learn_temperature: bool = True,  # noqa: FBT001
        learn_eta: bool = True,  # noqa: FBT001
        num_samples: int = 1,
        coupling: Coupling = "independent",
    ) -> None:
        super().__init__(temperature, eta, learn_temperature, learn_eta, num_samples, coupling)
        self.surrogate = Surrogate() if surrogate is None else surrogate

    def prepare(self, q: Distribution, context: Tensor | None = None) -> None:
        """Check q and size the surrogate."""
        super().prepare(q, context)
        prepare_surrogate(self.surrogate, q, context)

    def control_variate(self, q: Distribution, z: Tensor, f: Objective, context: Tensor | None) -> Tensor:
        """Return r_φ(z) + η f(σ_λ(z))."""
        learned = evaluate_surrogate(self.surrogate, q, z * undecided(q), context)
        return super().control_variate(q, z, f, context) + learned
