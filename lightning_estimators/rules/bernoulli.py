"""The rule of the Bernoulli distribution."""

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
    r"""Return $p'_j [f(1, z_{-j}) - f(0, z_{-j})]$ with $p' = p (1 - p)$, the derivative in the logits.

    Where q is on its probabilities (see `distribution_parameters`) it is the difference alone.

    Source: Echraibi et al. (2020), *Generalized stochastic backpropagation*, eq. 16, https://hal.science/hal-02968975.
    """
    (name,) = distribution_parameters(q)
    variance = base_distribution(q).variance.detach()
    # Both points come from one change: f(1) - f(0) is the change of flipping z_j, with the sign of the flip.
    weights = variance if name == "logits" else torch.ones_like(variance)
    difference = (1 - 2 * z) * f.weighted_change(z, 1 - z, weights)
    if name == "probs":  # where one is as good as 0 or 1: the derivative in p itself, which exists there
        return {name: difference}
    # What cannot happen weighs nothing, whatever it costs.
    return {name: torch.where(variance > 0, variance * difference, 0.0)}
