"""What a policy and the environments it acts in hand to each other. Imports torch only.

A datamodule of environments has the attributes `observation_size` (int), `action_kind` (`ActionKind`) and
`action_sizes` (list of int). The command line hands them to the arguments of the same names of a model that has them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

__all__ = ["ActionKind", "Episodes", "Policy", "Rollout", "ended_episodes"]

ActionKind = Literal["discrete", "multi_discrete", "multi_binary", "box"]
"""Gymnasium's fundamental action spaces. Beside the kind, a list of sizes says what an action is:

================  =======================  ==================================================================
kind              sizes                    one action (`event` in the shapes of `Rollout`)
================  =======================  ==================================================================
"discrete"        `[n]`                    an integer from 0 to n - 1, shape `()`, int64
"multi_discrete"  `[n_1, ..., n_D]`        D integers, the d-th from 0 to n_d - 1, shape `(D,)`, int64
"multi_binary"    `[D]`                    D numbers that are 0 or 1, shape `(D,)`, int64
"box"             `[D]`                    D real numbers, shape `(D,)`, floating; not yet clipped to the box
================  =======================  ==================================================================
"""


class Rollout(NamedTuple):
    """`num_steps` consecutive steps in each of `num_envs` environments: a training batch of reinforcement learning.

    Episodes follow one another without a gap: the step after one that ended an episode is the first of the next. The
    batch begins and ends anywhere in an episode.

    Attributes:
        observations: What the policy saw, flattened and scaled, shape `(num_steps, num_envs, observation_size)`.
        actions: What it did, in the form of `ActionKind`, shape `(num_steps, num_envs, *event)`.
        rewards: What it got for that, shape `(num_steps, num_envs)`.
        terminated: Whether the step ended its episode by the rules of the environment, so that nothing follows;
            boolean.
        truncated: Whether the step ended its episode from outside, such as by a limit of time, so that what would have
            followed has a value; boolean. Both may be true; then nothing follows.
        next_observations: What the step led to, scaled like `observations`. At the end of an episode this is its last
            observation, not the first of the next episode.
        log_prob: Log-probability (or density) of the action under the policy that took it, shape
            `(num_steps, num_envs)`.
        elapsed_steps: How many steps of the same episode came before, int64.
        episode_returns: Undiscounted sum of the episode's rewards up to and including this step: at the end of an
            episode, its return.
        action_mask: Which alternatives were allowed, boolean, shape `(num_steps, num_envs, sum of sizes)`, those of
            several variables one after the other; None if all were. For "discrete" and "multi_discrete" only.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    next_observations: Tensor
    log_prob: Tensor
    elapsed_steps: Tensor
    episode_returns: Tensor
    action_mask: Tensor | None = None


def ended_episodes(rollout: Rollout) -> tuple[list[float], list[int]]:
    """Return the returns and the lengths of the episodes that ended in a rollout, in the order in which they ended."""
    ends = (rollout.terminated | rollout.truncated).flatten().nonzero().squeeze(-1)
    if not len(ends):
        return [], []
    returns, elapsed = rollout.episode_returns.flatten()[ends], rollout.elapsed_steps.flatten()[ends]
    return returns.tolist(), (elapsed + 1).tolist()


class Episodes(NamedTuple):
    """Whole episodes that were played to judge a policy: a batch of validation, test and prediction.

    Attributes:
        returns: Undiscounted sums of rewards, shape `(episodes,)`.
        lengths: Numbers of steps, int64, shape `(episodes,)`.
    """

    returns: Tensor
    lengths: Tensor


@runtime_checkable
class Policy(Protocol):
    """A LightningModule that can act: what collecting a `Rollout` needs of it.

    A batch is collected inside one `with policy.acting(number)`, with one call of `act` for each step.
    """

    def acting(self, number: int, *, evaluation: bool = False) -> AbstractContextManager[None]:
        """Return a context without autograd in which actions draw from a stream of noise of their own.

        The stream must not be that of the training step, whose noise would then be correlated with the actions.

        Args:
            number: Of batches of this kind collected before, over the whole run.
            evaluation: Whether the actions are those of evaluation, which have yet another stream.
        """
        ...

    def act(
        self, observations: Tensor, action_mask: Tensor | None = None, *, greedy: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return an action for each observation, and its log-probability.

        Args:
            observations: Shape `(num_envs, observation_size)`, on the device of the module.
            action_mask: See `Rollout.action_mask`, shape `(num_envs, sum of sizes)`.
            greedy: Whether to take the most probable action (the mean, for real-valued ones) and draw nothing.

        Returns:
            Actions, shape `(num_envs, *event)`, and log-probabilities, shape `(num_envs,)`.
        """
        ...
