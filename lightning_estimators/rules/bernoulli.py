"""The gradient rule of the Bernoulli distribution."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution

from lightning_estimators.distributions import base_distribution, distribution_parameters
from lightning_estimators.objectives import Objective
from lightning_estimators.rules.base import register_rule

__all__ = ["bernoulli_rule"]


@register_rule(Bernoulli, f_gradient=False)
def bernoulli_rule(q: Distribution, z: Tensor, f: Objective) -> dict[str, Tensor]:
    r"""Return $p_j (1 - p_j) [f(1, z_{-j}) - f(0, z_{-j})]$, the gradient in the logits.

    If the parameters of q are probabilities (see `distribution_parameters`), the gradient is the difference alone.

    Source: Echraibi et al. (2020), *Generalized stochastic backpropagation*, eq. 16, https://hal.science/hal-02968975.
    """
    (name,) = distribution_parameters(q)
    variance = base_distribution(q).variance.detach()
    # f(z) is one of the two costs, so f(1, z_-j) - f(0, z_-j) is, up to its sign, the change when z_j is flipped.
    weights = variance if name == "logits" else torch.ones_like(variance)
    difference = (1 - 2 * z) * f.weighted_change(z, 1 - z, weights)
    if name == "probs":  # q was given by probabilities of which one is 0 or 1, where logits are infinite
        return {name: difference}
    # The cost of an outcome of probability 0 may be infinite, and 0 times infinity is not a number.
    return {name: torch.where(variance > 0, variance * difference, 0.0)}
