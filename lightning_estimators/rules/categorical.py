"""The rule of the one-hot categorical distribution."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, OneHotCategorical

from lightning_estimators.distributions import distribution_parameters, probabilities
from lightning_estimators.objectives import Objective
from lightning_estimators.rules.base import register_rule

__all__ = ["categorical_rule"]

CHUNK_BYTES = 2**26
"""The most memory that alternatives take at once."""


@register_rule(OneHotCategorical, f_gradient=False)
def categorical_rule(q: Distribution, z: Tensor, f: Objective) -> dict[str, Tensor]:
    r"""Return $\sum_k \nabla \pi_k\, [f(k, z_{-j}) - f(z)]$ over the K - 1 alternatives to the sampled class.

    Eq. 17 of Echraibi et al. subtracts the cost of a reference class. Any class will do, since
    $\sum_k \nabla \pi_k = 0$; here it is the sampled one, for which f(z) is already known. In the
    logits $\nabla \pi_k = \pi_k (e_k - \pi)$.

    Source: Echraibi et al. (2020), *Generalized stochastic backpropagation*, eq. 17, https://hal.science/hal-02968975.
    """
    probs = probabilities(q).detach()
    (name,) = distribution_parameters(q)
    if name == "probs":  # where one is as good as 0: the derivative in it, whatever normalises it
        return {name: _changes_by_class(z, f, torch.ones_like(probs), None)}
    # The length of a column of the derivative of the probabilities in the logits.
    weights = probs * (1 - 2 * probs + probs.square().sum(-1, keepdim=True)).sqrt()
    by_class = _changes_by_class(z, f, weights, probs > 0)
    return {name: probs * (by_class - (probs * by_class).sum(-1, keepdim=True))}


def _changes_by_class(z: Tensor, f: Objective, weights: Tensor, possible: Tensor | None) -> Tensor:
    """Return f(k, z_-j) - f(z) for every class k, 0 for the sampled one and for what is not possible.

    Alternatives are built in chunks of bounded memory: all at once they would be K × K numbers for every variable.
    """
    classes = z.shape[-1]
    by_class = torch.zeros_like(z)
    sampled = z.argmax(-1, keepdim=True)
    step = max(1, CHUNK_BYTES // max(1, z.numel() * z.element_size()))
    for first in range(1, classes, step):
        # Alternative a of every variable is the class a places further on, so none of them is the sampled one.
        shift = torch.arange(first, min(first + step, classes), device=z.device).reshape(-1, *(1,) * z.ndim)
        index = (sampled + shift) % classes
        if possible is not None:
            index = torch.where(possible.expand(len(index), *z.shape).gather(-1, index), index, sampled)
        alternatives = z.new_zeros(len(index), *z.shape).scatter_(-1, index, 1.0)
        weight = weights.expand(len(index), *z.shape).gather(-1, index).squeeze(-1)
        changes = f.weighted_change(z, alternatives, weight)
        index = index.squeeze(-1).movedim(0, -1)
        changes = torch.where(index == sampled, 0.0, changes.movedim(0, -1)).to(z.dtype)
        by_class.scatter_add_(-1, index, changes)
    return by_class
