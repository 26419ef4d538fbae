"""The gradient rule of the one-hot categorical distribution."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, OneHotCategorical

from lightning_estimators.distributions import distribution_parameters, probabilities
from lightning_estimators.objectives import Objective
from lightning_estimators.rules.base import register_rule

__all__ = ["categorical_rule"]

CHUNK_BYTES = 2**26
"""How many bytes of alternatives are built at a time."""


@register_rule(OneHotCategorical, f_gradient=False)
def categorical_rule(q: Distribution, z: Tensor, f: Objective) -> dict[str, Tensor]:
    r"""Return $\sum_k \nabla \pi_k\, [f(k, z_{-j}) - f(z)]$, a sum over the K - 1 classes k that were not sampled.

    Eq. 17 of Echraibi et al. subtracts the cost of a fixed reference class. Any class gives the same result, since
    $\sum_k \nabla \pi_k = 0$; here it is the sampled class, whose cost f(z) is known already. With respect to the
    logits, $\nabla \pi_k = \pi_k (e_k - \pi)$.

    Source: Echraibi et al. (2020), *Generalized stochastic backpropagation*, eq. 17, https://hal.science/hal-02968975.
    """
    probs = probabilities(q).detach()
    (name,) = distribution_parameters(q)
    if name == "probs":  # q was given by probabilities of which one is 0, where logits are infinite
        return {name: _changes_by_class(z, f, torch.ones_like(probs), None)}
    # How strongly the change to class k enters the gradient: the Euclidean length of pi_k (e_k - pi).
    weights = probs * (1 - 2 * probs + probs.square().sum(-1, keepdim=True)).sqrt()
    by_class = _changes_by_class(z, f, weights, probs > 0)
    return {name: probs * (by_class - (probs * by_class).sum(-1, keepdim=True))}


def _changes_by_class(z: Tensor, f: Objective, weights: Tensor, possible: Tensor | None) -> Tensor:
    """Return f(k, z_-j) - f(z) for every class k; 0 for the sampled class and for classes of probability 0.

    The alternatives of a variable are K vectors of K numbers, so they are built in chunks of bounded memory.
    """
    sampled = z.argmax(-1, keepdim=True)
    if (known := f.class_change(z)) is not None:
        known = known.to(z.dtype).scatter(-1, sampled, 0.0)
        return known if possible is None else torch.where(possible, known, 0.0)
    classes = z.shape[-1]
    by_class = torch.zeros_like(z)
    step = max(1, CHUNK_BYTES // max(1, z.numel() * z.element_size()))
    for first in range(1, classes, step):
        # Alternative number a of a variable is the class a places after the sampled one, so it never is that one.
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
