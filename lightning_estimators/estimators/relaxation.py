"""The continuous relaxation of discrete variables, and its conditional given the discrete sample, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution
from torch.nn.functional import softplus

from lightning_estimators.distributions import base_distribution, probabilities
from lightning_estimators.noise import uniform

__all__ = [
    "check_temperature",
    "conditional_relaxation",
    "hard",
    "relax",
    "relaxation",
    "score",
    "through_normalization",
]


def relaxation(q: Distribution) -> Tensor:
    r"""Draw the unconstrained z of which the discrete sample is a threshold, differentiable in the logits.

    Bernoulli: $z = l + \operatorname{logit} u$, b = 1[z > 0]. Categorical: $z = \log\pi + G$, b = argmax z.

    Returns:
        Tensor of shape `batch_shape + event_shape`.
    """
    logits = _logits(q)
    u = uniform(q.batch_shape, q.event_shape, dtype=logits.dtype, device=logits.device)
    if isinstance(base_distribution(q), Bernoulli):
        return logits + u.log() - torch.log1p(-u)
    return logits - _log_exponential(u)


def hard(q: Distribution, z: Tensor) -> Tensor:
    """Return the discrete sample of which z is the relaxation, without gradient."""
    z = z.detach()
    if isinstance(base_distribution(q), Bernoulli):
        return torch.gt(z, 0, out=torch.empty_like(z))
    return torch.zeros_like(z).scatter_(-1, z.argmax(-1, keepdim=True), 1.0)


def conditional_relaxation(q: Distribution, b: Tensor) -> tuple[Tensor, Tensor]:
    r"""Draw $\tilde z \sim z \mid b$; return it and $\partial\tilde z_j / \partial l_j$ at fixed noise v, as numbers.

    Every entry depends on its own logit only. Logits of categoricals are the normalised ones, $\log\pi$.

    Bernoulli: with s = ±1 for b = 1, 0 and $v_1 = v, v_0 = 1 - v$,
    $\tilde z = s\,[\operatorname{softplus}(s l + \log v_b) - \log(1 - v_b)]$, which is $l + \operatorname{logit} v'$ of
    the papers without the rounding of v' to 0 or 1. Categorical: $\tilde z_b = -\log E_b$ for the chosen class and
    $\tilde z_i = -\log(E_i / \pi_i + E_b)$ for the others, E standard exponential.

    Source: the appendices of Tucker et al. (2017), *REBAR*, https://arxiv.org/abs/1703.07370, and of
    Grathwohl et al. (2018), *Backpropagation through the void*, https://arxiv.org/abs/1711.00123.
    """
    logits = _logits(q).detach()
    v = uniform(q.batch_shape, q.event_shape, dtype=logits.dtype, device=logits.device)
    if isinstance(base_distribution(q), Bernoulli):
        sign = 2 * b - 1
        log_v, log_w = v.log(), torch.log1p(-v)
        # lerp is exact at weights 0 and 1, and many times faster than where.
        shifted = torch.lerp(log_w, log_v, b).addcmul_(sign, logits)
        return sign * (softplus(shifted) - torch.lerp(log_v, log_w, b)), torch.sigmoid(shifted)
    log_e = _log_exponential(v)
    log_e_chosen = (log_e * b).sum(-1, keepdim=True)
    z = -torch.lerp(torch.logaddexp(log_e - logits, log_e_chosen), log_e_chosen.expand_as(b), b)
    return z, -torch.expm1(z + log_e_chosen)


def relax(q: Distribution, z: Tensor, temperature: Tensor | float) -> Tensor:
    """Map z towards the hard sample: sigmoid or softmax of z / temperature."""
    if isinstance(base_distribution(q), Bernoulli):
        return torch.sigmoid(z / temperature)
    return torch.softmax(z / temperature, -1)


def check_temperature(estimator: nn.Module, temperature: float) -> None:
    """Raise unless the temperature of a relaxation is a positive, finite number."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"{type(estimator).__name__} needs a positive, finite temperature, got {temperature!r}.")


def score(q: Distribution, b: Tensor) -> Tensor:
    """Return the gradient of log q(b) in the (unnormalised) logits: b - p."""
    return b - probabilities(q).detach()


def through_normalization(q: Distribution, gradient: Tensor) -> Tensor:
    """Turn a gradient in the logits torch keeps, which for categoricals are normalised, into one in those given."""
    if isinstance(base_distribution(q), Bernoulli):
        return gradient
    return gradient - probabilities(q).detach() * gradient.sum(-1, keepdim=True)


def _logits(q: Distribution) -> Tensor:
    base = base_distribution(q)
    logits: Tensor = base.logits  # type: ignore[attr-defined]
    return logits


def _log_exponential(u: Tensor) -> Tensor:
    """Log of a standard exponential variable; minus a standard Gumbel one."""
    return (-u.log()).log()
