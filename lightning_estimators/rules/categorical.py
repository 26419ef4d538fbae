"""The rule of the one-hot categorical distribution."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, OneHotCategorical

from lightning_estimators.distributions import probabilities
from lightning_estimators.objectives import Objective
from lightning_estimators.rules.base import register_rule

__all__ = ["categorical_rule"]


@register_rule(OneHotCategorical, f_gradient=False)
def categorical_rule(q: Distribution, z: Tensor, f: Objective) -> dict[str, Tensor]:
    r"""Return $\sum_k \nabla \pi_k\, [f(k, z_{-j}) - f(z)]$ over the K - 1 alternatives to the sampled class.

    Eq. 17 of Echraibi et al. subtracts the cost of a reference class. Any class will do, since
    $\sum_k \nabla \pi_k = 0$; here it is the sampled one, for which f(z) is already known. In the
    logits $\nabla \pi_k = \pi_k (e_k - \pi)$.

    Source: Echraibi et al. (2020), *Generalized stochastic backpropagation*, eq. 17, https://hal.science/hal-02968975.
    """
    if z.shape[-1] == 1:  # a single category has no alternative
        return {"logits": torch.zeros_like(z)}
    # Alternative a of every variable is the class a places further on, so none of them is the sampled one.
    alternatives = torch.stack([z.roll(a, -1) for a in range(1, z.shape[-1])])
    changes = f.coordinate_change(z, alternatives)
    by_class = (alternatives * changes.unsqueeze(-1)).sum(0)  # zero for the sampled class
    probs = probabilities(q).detach()
    return {"logits": probs * (by_class - (probs * by_class).sum(-1, keepdim=True))}
