"""Continuous relaxations of discrete variables, and their conditionals given the discrete sample, in closed form."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, OneHotCategorical
from torch.nn.functional import softplus

from lightning_estimators.distributions import base_distribution, exact_logits, probabilities
from lightning_estimators.noise import uniform

__all__ = [
    "Relaxation",
    "check_temperature",
    "gradients_of_parameters",
    "relaxation_of",
    "score",
    "times_covariance",
    "undecided",
]

LIMIT = 2.0**30
"""The largest logit of a relaxation, in place of infinity: relaxed samples are 0 or 1 there, to the last digit."""


def relaxation_of(q: Distribution) -> Relaxation:
    """Return the relaxation of Bernoulli or one-hot categorical variables."""
    base = base_distribution(q)
    if isinstance(base, Bernoulli):
        return _BernoulliRelaxation(q)
    if isinstance(base, OneHotCategorical):
        return _CategoricalRelaxation(q)
    raise TypeError(f"expected Bernoulli or OneHotCategorical variables to relax, got {type(base).__name__}.")


class Relaxation(ABC):
    r"""An unconstrained variable z, differentiable in the logits, of which the discrete sample b is a threshold.

    All tensors have shape `batch_shape + event_shape` of q, or more axes on the left where that makes sense.

    Args:
        q: The discrete distribution.
    """

    def __init__(self, q: Distribution) -> None:
        self.q = q

    @cached_property
    def logits(self) -> Tensor:
        r"""Those torch keeps, of categoricals the normalised ones $\log \pi$, made finite."""
        return exact_logits(self.q).clamp(-LIMIT, LIMIT)

    @abstractmethod
    def draw(self) -> Tensor:
        """Draw z, attached to the logits."""

    @abstractmethod
    def harden(self, z: Tensor) -> Tensor:
        """Return the discrete sample of which z is the relaxation, without gradient."""

    @abstractmethod
    def soften(self, z: Tensor, temperature: Tensor | float) -> Tensor:
        """Map z to the inside of the support; the lower the temperature, the nearer to the discrete sample."""

    @abstractmethod
    def draw_given(self, b: Tensor) -> tuple[Tensor, Tensor]:
        r"""Draw $\tilde z \sim z \mid b$; return it and $\partial\tilde z_j / \partial l_j$ at fixed noise, as numbers.

        Every entry depends on its own (normalised) logit only. With more axes on the left, b gives as many draws.

        Source: the appendices of Tucker et al. (2017), *REBAR*, https://arxiv.org/abs/1703.07370, and of Grathwohl et
        al. (2018), *Backpropagation through the void*, https://arxiv.org/abs/1711.00123.
        """

    @abstractmethod
    def through_normalization(self, gradient: Tensor) -> Tensor:
        """Turn a gradient with respect to the logits torch keeps into one with respect to those the user gave."""

    def _noise(self, b: Tensor | None = None) -> Tensor:
        """Draw noise for every entry of q, or of b, which may have more axes on the left."""
        event = self.q.event_shape
        batch = self.q.batch_shape if b is None else b.shape[: b.ndim - len(event)]
        return uniform(batch, event, dtype=self.logits.dtype, device=self.logits.device)


class _BernoulliRelaxation(Relaxation):
    r"""$z = l + \operatorname{logit} u$ and b = 1[z > 0]."""

    def draw(self) -> Tensor:
        u = self._noise()
        return self.logits + u.log() - torch.log1p(-u)

    def harden(self, z: Tensor) -> Tensor:
        z = z.detach()
        return torch.gt(z, 0, out=torch.empty_like(z))

    def soften(self, z: Tensor, temperature: Tensor | float) -> Tensor:
        return torch.sigmoid(z / temperature)

    def draw_given(self, b: Tensor) -> tuple[Tensor, Tensor]:
        r"""With s = ±1 for b = 1, 0 and $v_1 = v, v_0 = 1 - v$ this is
        $\tilde z = s\,[\operatorname{softplus}(s l + \log v_b) - \log(1 - v_b)]$, which equals
        $l + \operatorname{logit} v'$ of Tucker et al. without the rounding of v' to 0 or 1.
        """  # noqa: D205
        v, sign = self._noise(b), 2 * b - 1
        log_v, log_w = v.log(), torch.log1p(-v)
        # lerp is exact at weights 0 and 1, and many times faster than where.
        shifted = torch.lerp(log_w, log_v, b).addcmul_(sign, self.logits.detach())
        return sign * (softplus(shifted) - torch.lerp(log_v, log_w, b)), torch.sigmoid(shifted)

    def through_normalization(self, gradient: Tensor) -> Tensor:
        return gradient


class _CategoricalRelaxation(Relaxation):
    r"""$z = \log\pi + G$ with standard Gumbel noise G, and b = argmax z."""

    def draw(self) -> Tensor:
        return self.logits - _log_exponential(self._noise())

    def harden(self, z: Tensor) -> Tensor:
        z = z.detach()
        return torch.zeros_like(z).scatter_(-1, z.argmax(-1, keepdim=True), 1.0)

    def soften(self, z: Tensor, temperature: Tensor | float) -> Tensor:
        return torch.softmax(z / temperature, -1)

    def draw_given(self, b: Tensor) -> tuple[Tensor, Tensor]:
        r"""With standard exponential noise E this is $\tilde z_b = -\log E_b$ for the sampled class b, and
        $\tilde z_i = -\log(E_i / \pi_i + E_b)$ for the others.
        """  # noqa: D205
        log_e = _log_exponential(self._noise(b))
        log_e_chosen = (log_e * b).sum(-1, keepdim=True)
        others = torch.logaddexp(log_e - self.logits.detach(), log_e_chosen)
        z = -torch.lerp(others, log_e_chosen.expand_as(b), b)
        return z, -torch.expm1(z + log_e_chosen)

    def through_normalization(self, gradient: Tensor) -> Tensor:
        return gradient - probabilities(self.q).detach() * gradient.sum(-1, keepdim=True)


def check_temperature(estimator: nn.Module, temperature: float) -> None:
    """Raise unless the temperature of a relaxation is a positive, finite number."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"{type(estimator).__name__} needs a positive, finite temperature, got {temperature!r}.")


def score(q: Distribution, b: Tensor) -> Tensor:
    """Return the gradient of log q(b) with respect to the (unnormalised) logits: b - p."""
    return b - probabilities(q).detach()


def times_covariance(q: Distribution, slope: Tensor) -> Tensor:
    """Return the covariance of the variables times slopes: the gradient in the logits if f had these slopes all over.

    Args:
        q: Bernoulli or one-hot categorical variables.
        slope: Shape `q.batch_shape + q.event_shape`.
    """
    p = probabilities(q).detach()
    if isinstance(base_distribution(q), Bernoulli):
        return p * (1 - p) * slope
    return p * (slope - (p * slope).sum(-1, keepdim=True))


def undecided(q: Distribution) -> Tensor:
    """Return 1 where the relaxation tells something, and 0 for impossible or certain classes and constant variables.

    What looks at raw relaxations must not look there. The noise of a certain class would be noise in the gradient of
    all other variables, and the logit of an impossible one, -1e9 for padding, would drown them. Nothing is lost: the
    gradient is 0 there, to the last digit.
    """
    logits = exact_logits(q).detach()
    impossible = math.log(torch.finfo(logits.dtype).tiny)
    if isinstance(base_distribution(q), Bernoulli):
        return torch.lt(logits.abs(), -impossible, out=torch.empty_like(logits))
    return ((logits > impossible) & (logits != 0)).to(logits.dtype)


def gradients_of_parameters(q: Distribution, leaves: dict[str, Tensor], gradient: Tensor) -> dict[str, Tensor]:
    """Return the gradient in the logits as one in the parameters: the same, unless q is on its probabilities.

    It is (see `distribution_parameters`) where one of them is as good as 0 or 1. At 0 and 1 themselves a sample, in
    which the other outcome never comes up, says nothing of how the expectation changes, and the answer is 0.
    """
    if "probs" not in leaves:
        return dict.fromkeys(leaves, gradient)
    p = probabilities(q).detach()
    slope = p * (1 - p) if isinstance(base_distribution(q), Bernoulli) else p
    if not slope.all():
        warnings.warn(
            "some probabilities are exactly 0 or 1: samples tell nothing of the other outcome, so the gradient in "
            "these is taken as 0. Where they are parameters themselves use StochasticBackprop or Enumeration, which "
            "evaluate the cost at both outcomes; or give logits.",
            stacklevel=2,
        )
    return {"probs": torch.where(slope > 0, gradient / torch.where(slope > 0, slope, 1.0), 0.0)}


def _log_exponential(u: Tensor) -> Tensor:
    """Return the logarithm of a standard exponential variable, which is minus a standard Gumbel one."""
    return (-u.log()).log()
