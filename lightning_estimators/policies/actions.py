"""What a policy's distribution is built of: one class for each kind of action."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from lightning_estimators.configurable import Configurable
from lightning_estimators.distributions import sample

__all__ = ["ActionDistribution", "in_full_precision", "masked_logits"]

IMPOSSIBLE = -1e9
"""The logit of an action that a mask forbids: its probability is 0 to the last digit, and nothing is infinite."""


class ActionDistribution(Configurable, nn.Module, ABC):
    """Turns the outputs of a policy network into a distribution over actions.

    Implementing one:

    1. Set `num_outputs`, the numbers that a policy network must return for each state.
    2. Implement `forward`: the distribution, of batch_shape that of the outputs without their last axis, in at least
       float32 (`in_full_precision`). Parameters that are no function of the state are parameters of this module.
    3. Implement `exploration`, and `greedy` if the distribution has no `mode`.
    4. Override `to_environment` and `from_environment` if environments take actions in another form (`ActionKind`) than
       the distribution draws them.
    5. Override `act` where that is faster: building a distribution takes longer than a step of a small environment.
    """

    num_outputs: int

    @abstractmethod
    def forward(self, outputs: Tensor, mask: Tensor | None = None) -> Distribution:
        """Return the policy's distribution, attached to the outputs.

        Args:
            outputs: Of the policy network, shape `batch_shape + (num_outputs,)`.
            mask: Which alternatives are allowed (`Rollout.action_mask`), boolean, of the shape of the outputs, or None.

        Raises:
            ValueError: The mask has another shape, or this kind of actions takes none.
        """

    @abstractmethod
    def exploration(self, q: Distribution, mask: Tensor | None = None) -> Tensor:
        """Return how random the policy still is, as a share of the most that it can be; a number without gradient."""

    def act(self, outputs: Tensor, mask: Tensor | None = None, *, greedy: bool = False) -> tuple[Tensor, Tensor]:
        """Return actions as environments take them, and their log-probabilities, drawn from what `forward` returns.

        Args:
            outputs: As in `forward`.
            mask: As in `forward`.
            greedy: Whether to take the most probable action (the mean, for real-valued ones) and draw nothing.
        """
        q = self(outputs, mask)
        drawn = self.greedy(q) if greedy else sample(q)
        return self.to_environment(drawn), q.log_prob(drawn)

    def greedy(self, q: Distribution) -> Tensor:
        """Return the most probable action, shape `batch_shape + event_shape`."""
        return q.mode

    def to_environment(self, samples: Tensor) -> Tensor:
        """Return samples of the distribution in the form in which environments take actions."""
        return samples

    def from_environment(self, actions: Tensor) -> Tensor:
        """Return actions that an environment took as samples of the distribution."""
        return actions


def in_full_precision(outputs: Tensor) -> Tensor:
    """Return the outputs of a network in at least float32, in which probabilities and noise are not rounded."""
    return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs


def masked_logits(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Return the logits with those of forbidden alternatives so low that their probability is 0.

    Raises:
        ValueError: The mask has another shape.
    """
    if mask is None:
        return logits
    if mask.shape != logits.shape:
        raise ValueError(
            f"expected an action mask of the shape of the logits, {tuple(logits.shape)}, got {tuple(mask.shape)}."
        )
    return logits.masked_fill(mask.logical_not(), IMPOSSIBLE)
