"""Actions that are choices among alternatives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent
from torch.nn.functional import one_hot, pad

from lightning_estimators.noise import uniform
from lightning_estimators.policies.actions import ActionDistribution, in_full_precision, masked_logits
from lightning_estimators.private_api import unvalidated_one_hot_categorical

__all__ = ["DiscreteActions"]


class DiscreteActions(ActionDistribution):
    r"""D independent choices, each among alternatives of its own: $\pi(a|s) = \prod_d \mathrm{Cat}(a_d)$.

    A sample is a one-hot vector for each choice, event_shape (D, K) with K the largest number of alternatives; classes
    beyond a choice's own number have probability 0. Environments get the index of each choice, shape (..., D), as
    gymnasium's `MultiDiscrete` has it, or for one choice its index alone, as `Discrete` has it.

    Args:
        sizes: How many alternatives each choice has, at least 1.
        is_scalar: Whether environments take the index of the only choice, without an axis for choices.

    Raises:
        ValueError: There is no choice, or one without alternatives; there are several, and `is_scalar`; a mask forbids
            all alternatives of a choice.

    Example:
        >>> import torch
        >>> actions = DiscreteActions([3, 2])
        >>> q = actions(torch.zeros(4, actions.num_outputs))
        >>> q.batch_shape, q.event_shape, actions.to_environment(actions.greedy(q)).shape
        (torch.Size([4]), torch.Size([2, 3]), torch.Size([4, 2]))
    """

    exists: Tensor

    def __init__(self, sizes: Sequence[int], *, is_scalar: bool = False) -> None:
        super().__init__()
        if not sizes or min(sizes) < 1:
            raise ValueError(f"DiscreteActions needs at least one choice of at least 1 alternative, got {list(sizes)}.")
        if is_scalar and len(sizes) > 1:
            raise ValueError(f"is_scalar is for one choice, got {len(sizes)}, of sizes {list(sizes)}.")
        self.sizes, self.is_scalar, self.num_outputs = tuple(sizes), is_scalar, sum(sizes)
        exists = torch.arange(max(sizes)) < torch.tensor(self.sizes).unsqueeze(-1)
        self.register_buffer("exists", exists, persistent=False)

    def forward(self, outputs: Tensor, mask: Tensor | None = None) -> Distribution:
        """Return one-hot variables of event_shape (D, K)."""
        return Independent(unvalidated_one_hot_categorical(self._logits(outputs, mask)), 1, validate_args=False)

    def act(self, outputs: Tensor, mask: Tensor | None = None, *, greedy: bool = False) -> tuple[Tensor, Tensor]:
        """Return actions as environments take them, and their log-probabilities."""
        log_probs = self._logits(outputs, mask).log_softmax(-1)
        if greedy:
            index = log_probs.argmax(-1, keepdim=True)
        else:
            # As `distributions.sample` draws: what has probability 0 is never drawn, whatever rounding does to sums.
            sums = log_probs.exp().cumsum(-1)
            u = uniform(sums.shape[:-2], (len(self.sizes), 1), dtype=sums.dtype, device=sums.device)
            index = (u * sums[..., -1:] >= sums).sum(-1, keepdim=True)
        log_prob, batch_shape = log_probs.gather(-1, index), outputs.shape[:-1]
        if self.is_scalar:
            return index.reshape(batch_shape), log_prob.reshape(batch_shape)
        return index.squeeze(-1), log_prob.squeeze(-1).sum(-1)

    def exploration(self, q: Distribution, mask: Tensor | None = None) -> Tensor:
        """Return the mean entropy over its maximum, that of choosing among the allowed alternatives by chance."""
        allowed = self.exists if mask is None else self._by_choice(mask, fill=False)
        entropy, most = q.entropy().detach().mean(), allowed.sum(-1).log().sum(-1).mean()
        return entropy / most.clamp_min(torch.finfo(most.dtype).tiny)

    def to_environment(self, samples: Tensor) -> Tensor:
        """Return the index of each choice, shape (..., D), or of the only one, shape (...)."""
        index = samples.argmax(-1)
        return index.squeeze(-1) if self.is_scalar else index

    def from_environment(self, actions: Tensor) -> Tensor:
        """Return one-hot vectors, shape (..., D, K)."""
        index = actions.unsqueeze(-1) if self.is_scalar else actions
        return one_hot(index, max(self.sizes)).float()

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"sizes={list(self.sizes)}, is_scalar={self.is_scalar}"

    def _logits(self, outputs: Tensor, mask: Tensor | None) -> Tensor:
        """Return the logits of each choice, shape (..., D, K), those of impossible alternatives very low."""
        logits = masked_logits(in_full_precision(outputs), mask)
        if mask is not None and not bool(self._by_choice(mask, fill=False).any(-1).all()):
            raise ValueError("an action mask forbids every alternative of a choice: at least one must be allowed.")
        by_choice = self._by_choice(logits, fill=0.0)
        if len(set(self.sizes)) == 1:
            return by_choice
        return masked_logits(by_choice, self.exists.expand(*logits.shape[:-1], -1, -1))

    def _by_choice(self, flat: Tensor, fill: float) -> Tensor:
        """Return alternatives that follow one another, shape (..., sum of sizes), as (..., D, K)."""
        if len(set(self.sizes)) == 1:
            return flat.reshape(*flat.shape[:-1], *self.exists.shape)
        parts = torch.split(flat, list(self.sizes), -1)
        return torch.stack([pad(part, (0, max(self.sizes) - part.shape[-1]), value=fill) for part in parts], -2)
