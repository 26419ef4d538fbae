"""A module that acts in environments: its policy, and the noise with which it acts."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils.data import DataLoader

from lightning_estimators.counter_noise import counter_noise
from lightning_estimators.modules.base import EstimatorModule
from lightning_estimators.modules.episode_returns import EpisodeReturns
from lightning_estimators.modules.seeded import attached_trainer
from lightning_estimators.policies import ActionDistribution
from lightning_estimators.rollout import Episodes, Rollout

__all__ = ["ActingModule"]

_TRAINING, _EVALUATION = 2**21, 2**21 + 1  # streams of noise, far from those that callbacks use


class ActingModule(EstimatorModule, ABC):
    r"""Holds a policy $\pi(a|s)$ that acts in environments (`rollout.Policy`), and is trained on its own actions.

    Training batches are `Rollout`s, evaluation batches are `Episodes`. A datamodule (`datamodules.Gymnasium`) collects
    them during training, with the policy as it is at that moment: it enters `acting(number)` for each batch, and calls
    `act` for each step.

    A batch must be collected after the policy was trained on the batch before it. Otherwise the policy learns from the
    actions of an older policy, which is known to make training collapse. Lightning fetches batches ahead if a data
    loader has no length or has workers, so such loaders are refused when training starts.

    The noise of acting is a stream of its own, numbered by the collected batches. It must be independent of the noise
    of the training step: with the same seed, the relaxed samples that RELAX draws given an action would be correlated
    with the action, which biases the gradient.

    Every `ActingModule` has the callback `callbacks.EpisodeReturns`, which logs the returns of episodes. When training
    is resumed, environments begin new episodes; weights, optimizers, noise and statistics continue.

    Implementing one: `loss`, in which `distribution(observations, mask)` is the policy.

    Args:
        policy: Network that maps observations, shape `(B, observation_size)`, to `(B, actions.num_outputs)`.
        actions: Turns its outputs into a distribution.
        observation_size: Entries of one observation.
        **training: Optimizers and their schedulers, see `EstimatorModule`.

    Raises:
        ValueError: The policy returns another shape; or, when training starts, the data loader may collect ahead.
    """

    def __init__(self, policy: nn.Module, actions: ActionDistribution, observation_size: int, **training: Any) -> None:
        super().__init__(**training)
        if observation_size < 1:
            raise ValueError(f"observation_size must be at least 1, got {observation_size!r}.")
        self._callbacks.append(EpisodeReturns())
        self.policy, self.actions, self.observation_size = policy, actions, observation_size
        self._place: tuple[torch.device, torch.dtype] | None = None  # of the policy, known while it acts
        outputs = policy(self.example_observations())
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        if shape != (2, actions.num_outputs):
            raise ValueError(
                f"the policy must map observations of shape (B, {observation_size}) to (B, {actions.num_outputs}), a "
                f"tensor of the parameters of {type(actions).__name__}; for B = 2 it returned {shape}."
            )

    def example_observations(self) -> Tensor:
        """Return two observations of zeros, by which networks are sized and checked."""
        return self._as_policy_input(torch.zeros(2, self.observation_size))

    def distribution(self, observations: Tensor, action_mask: Tensor | None = None) -> Distribution:
        """Return the policy's distribution over actions, attached to the policy.

        Args:
            observations: Shape `(B, observation_size)`.
            action_mask: Which alternatives are allowed, see `Rollout.action_mask`, shape `(B, sum of sizes)`; or None.
        """
        outputs = self.policy(self._as_policy_input(observations))
        q: Distribution = self.actions(outputs, None if action_mask is None else action_mask.to(outputs.device))
        return q

    def act(
        self, observations: Tensor, action_mask: Tensor | None = None, *, greedy: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return an action for each observation, and its log-probability; see `rollout.Policy`.

        Noise comes from torch's generator: call it inside `acting`.

        Args:
            observations: Shape `(num_envs, observation_size)`, on any device.
            action_mask: Which alternatives are allowed, see `Rollout.action_mask`, shape `(num_envs, sum of sizes)`.
            greedy: Whether to take the most probable action (the mean, for real-valued ones) and draw nothing.

        Returns:
            Actions in the form of `rollout.ActionKind`, shape `(num_envs, *event)`, and log-probabilities or
            log-densities, shape `(num_envs,)`, in the precision of the policy.
        """
        if self._place is None:
            with self._ready_to_act():
                return self.act(observations, action_mask, greedy=greedy)
        device, dtype = self._place
        outputs = self.policy(observations.to(device, dtype))
        mask = None if action_mask is None else action_mask.to(device)
        actions, log_prob = self.actions.act(outputs, mask, greedy=greedy)
        return actions, log_prob.to(outputs.dtype)

    @contextmanager
    def acting(self, number: int, *, evaluation: bool = False) -> Iterator[None]:
        """Enter a context without autograd in which `act` draws from streams of noise of its own.

        Each process draws noise of its own. The same number draws the same noise again.

        Args:
            number: Of batches of this kind collected before, over the whole run.
            evaluation: Whether the actions are those of evaluation, which have yet another stream.
        """
        stream = _EVALUATION if evaluation else _TRAINING
        noise = counter_noise(self.device, self.noise_seed(), stream, number, self.global_rank)
        with noise, self._ready_to_act():
            yield

    def num_examples(self, batch: Rollout) -> int:
        """Return how many steps a batch has, over all its environments."""
        return batch.rewards.numel()

    def on_train_start(self) -> None:
        """Refuse data loaders that may collect a batch before the update that precedes it."""
        super().on_train_start()
        _refuse_collecting_ahead(self.trainer.train_dataloader)

    def validation_step(self, batch: Episodes, batch_idx: int) -> None:
        """Do nothing: the episodes are there, and `callbacks.EpisodeReturns` logs them."""

    def test_step(self, batch: Episodes, batch_idx: int) -> None:
        """Do nothing: the episodes are there, and `callbacks.EpisodeReturns` logs them."""

    def predict_step(self, batch: Episodes, batch_idx: int) -> Episodes:
        """Return the episodes that were played."""
        return batch

    @contextmanager
    def _ready_to_act(self) -> Iterator[None]:
        """Find out once for many steps what each would take longer to find out than the policy takes to act."""
        weight, before = next(self.parameters()), self._place
        with torch.no_grad(), self._precision():
            self._place = weight.device, weight.dtype
            try:
                yield
            finally:
                self._place = before

    def _as_policy_input(self, observations: Tensor) -> Tensor:
        weight = next(self.parameters())
        return observations.to(device=weight.device, dtype=weight.dtype)

    def _precision(self) -> AbstractContextManager[Any]:
        """Return the context in which training steps run, autocast for one, so that both see the same policy."""
        trainer = attached_trainer(self)
        return nullcontext() if trainer is None else trainer.precision_plugin.forward_context()


def _refuse_collecting_ahead(loaders: Any) -> None:
    """Raise unless Lightning asks each data loader for a batch only when the one before it has been learned from.

    Raises:
        ValueError: A loader has no length, or workers.
    """
    for loader in loaders if isinstance(loaders, list | tuple) else [loaders]:
        reason = None
        if isinstance(loader, DataLoader) and loader.num_workers > 0:
            reason = f"has {loader.num_workers} workers"
        else:
            try:
                len(loader)
            except TypeError:
                reason = "has no length"
        if reason is not None:
            raise ValueError(
                f"the training data loader, {type(loader).__name__}, {reason}, so a batch is collected ahead of the "
                "update before it: the policy would learn from what an older one acted. Give it a length (`__len__`, "
                "the batches of an epoch) and no workers, and collect each batch when it is asked for."
            )
