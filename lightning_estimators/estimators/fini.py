"""Fini: straight-through for counts, exact for polynomial costs of a finite order."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, NegativeBinomial, Poisson

from lightning_estimators.distributions import base_distribution, distribution_parameters
from lightning_estimators.estimators.straight_through_estimator import StraightThroughEstimator
from lightning_estimators.noise import Coupling

__all__ = ["Fini"]


class Fini(StraightThroughEstimator):
    r"""Weights the slope of f at a sampled count, so that costs of order up to N have their exact gradient: biased.

    $\hat g_\theta = w_\theta(z)\, f'(z)$, where w is the polynomial of degree N − 1 with
    $E[w(z)\, z^k] = \partial_\theta E[z^{k+1}] / (k + 1)$ for k < N. Of all weights that make the gradient exact for
    polynomials of degree N this has the least mean square. Poisson with rate λ:

    - N = 2: $w_\lambda = \frac12 (1 + z / \lambda)$
    - N = 3: $w_\lambda = \frac5{12} + \frac{2z}{3\lambda} - \frac{z (z - 1)}{12 \lambda^2}$

    Negative binomial with r = `total_count`, p the sigmoid of its logit l as in torch, q = 1 − p:

    - N = 2: $w_l = \frac12 [r p + (1 + p) z]$, $w_r = \frac12 [p / q + z / r]$
    - N = 3: $w_l = \frac{r p (p + 5)}{12} + \frac{(p^2 + p + 4) z}6 - \frac{q^3 z (z - 1)}{12 p (r + 1)}$,
      $w_r = \frac{p (5 - p)}{12 q} + \frac{(p + 4) z}{6 r} - \frac{(1 - p^2) z (z - 1)}{12 p r (r + 1)}$

    The order of f is that in each coordinate given the others. For Poisson variables $\partial_\lambda E[f] =
    E[f(z + 1) - f(z)]$, and order 2 replaces the difference by the mean of the slopes at both ends, the trapezoidal
    rule. So the bias is that of this rule: small where f is smooth from one count to the next, and larger than the
    gradient where f oscillates faster (for sin 4z the sign is wrong). `StochasticBackprop` and `REINFORCE` take counts
    without bias. For Bernoulli and categorical variables order 2 is `ReinMax`.

    Requirements: an f that is defined between counts and differentiable there. Cost: one evaluation of f and of its
    gradient per sample.

    Args:
        order: N, 2 or 3. 3 has less bias where f is smooth, and about as much variance.
        num_samples: Samples per batch element.
        coupling: How these depend on one another; torch has no inverse distribution function of these families, so that
            "independent" is all there is.

    Raises:
        ValueError: `order` is neither 2 nor 3; f cannot be differentiated in z.

    Source: He & Wu (2026) for order 2 and 3 of Poisson and order 2 of negative binomial variables, as finite-order
    relaxation. For counts it carries on what Liu et al. (2023), *Bridging discrete and backpropagation*,
    https://arxiv.org/abs/2304.08612, do for categorical variables.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Poisson
        >>> _ = torch.manual_seed(0)
        >>> rate = torch.tensor([3.0], requires_grad=True)
        >>> loss = Fini(num_samples=10_000)(Independent(Poisson(rate), 1), lambda z: z.square().sum(-1))
        >>> loss.backward()
        >>> bool((rate.grad - 7).abs() < 0.2)  # E[z²] is λ + λ²
        True
    """

    families: ClassVar[tuple[type[Distribution], ...]] = (Poisson, NegativeBinomial)

    def __init__(self, order: Literal[2, 3] = 3, num_samples: int = 1, coupling: Coupling = "independent") -> None:
        super().__init__(num_samples, coupling)
        if order not in (2, 3):
            raise ValueError(f"Fini has weights of order 2 and 3, got order={order!r}.")
        self.order = order

    def stand_in(self, q: Distribution, z: Tensor) -> Tensor:
        """Return what has the weights as its derivatives in the parameters."""
        parameters = distribution_parameters(q)
        with torch.no_grad():
            if isinstance(base_distribution(q), Poisson):
                weights = {"rate": self._poisson(z, parameters["rate"])}
            else:
                weights = self._negative_binomial(z, parameters["total_count"], parameters["logits"])
        smooth = torch.zeros_like(z)
        for name, weight in weights.items():
            smooth = smooth + weight * parameters[name]
        return smooth

    def _poisson(self, z: Tensor, rate: Tensor) -> Tensor:
        relative = _over(z, rate)
        if self.order == 2:
            return (1 + relative) / 2
        return 5 / 12 + 2 / 3 * relative - relative * _over(z - 1, rate) / 12

    def _negative_binomial(self, z: Tensor, total: Tensor, logits: Tensor) -> dict[str, Tensor]:
        p, q, relative = logits.sigmoid(), (-logits).sigmoid(), _over(z, total)
        if self.order == 2:
            return {"logits": (total * p + (1 + p) * z) / 2, "total_count": (logits.exp() + relative) / 2}
        pairs = _over(z, p) * (z - 1) / (12 * (total + 1))
        return {
            "logits": total * p * (p + 5) / 12 + (p.square() + p + 4) * z / 6 - q**3 * pairs,
            "total_count": logits.exp() * (5 - p) / 12 + (p + 4) * relative / 6 - _over(q * (1 + p) * pairs, total),
        }

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"order={self.order}, {super().extra_repr()}"


def _over(z: Tensor, size: Tensor) -> Tensor:
    """Return z over its size, and 0 where nothing else than 0 is drawn."""
    return torch.where(size > 0, z / size, 0.0)
