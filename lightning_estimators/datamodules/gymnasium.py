"""Environments of gymnasium as data: batches that the policy in training has just collected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_estimators.arguments import CheckedArguments
from lightning_estimators.datamodules.base import check_integer
from lightning_estimators.datamodules.loading import CheckedDataModule
from lightning_estimators.datamodules.rollouts import PlayedOnce, Rollouts
from lightning_estimators.environments import Actions, Collector, Maker, RunningScale, play_episodes
from lightning_estimators.environments.fixed_weights import Purpose, rollouts_at_fixed_weights, seeds_for
from lightning_estimators.environments.making import require_gymnasium
from lightning_estimators.environments.video import record_episode
from lightning_estimators.rollout import ActionKind, Episodes, Policy, Rollout

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

__all__ = ["Gymnasium"]


class Gymnasium(CheckedArguments, CheckedDataModule):
    """Training batches and evaluation episodes from an environment of gymnasium.

    The module that is trained is the policy (`rollout.Policy`: it has a method `act`, and a context `acting` in which
    its noise is drawn). A training batch is a `Rollout`: `num_steps` steps in each of `num_envs` environments. It is
    collected at the moment the training loop asks for it, so that the policy that acted is the one that learns; if the
    loop asks for batches ahead, an error is raised. Validation, test and prediction play whole episodes, with the same
    seeds each time, and yield them as one batch, `Episodes`.

    Observations are flattened (to one-hot vectors if they are discrete). With `scale_observations` they are scaled by
    the running mean and standard deviation of all observations in training. Real-valued actions are clipped to the
    bounds of the environment before they are executed; the batch holds them as the policy drew them. The mask of
    allowed actions in `info["action_mask"]` is passed to the policy.

    Under DDP, each process has its own environments, seeds and noise. The statistics of observations are those of all
    processes, and evaluation episodes are divided among the processes. A resumed run continues with the weights,
    optimizers, noise and statistics of its checkpoint, but with new episodes, since environments cannot be saved.

    Attributes:
        observation_size: Entries of an observation.
        action_kind: See `rollout.ActionKind`.
        action_sizes: See there.

    Args:
        env: A registered id ("CartPole-v1"; "my_package:MyEnv-v0" imports my_package first), or a class or function
            that makes an environment, or the import path of such a class.
        num_envs: Environments in each process that are stepped side by side.
        num_steps: Steps in each of them that make a batch.
        steps_per_epoch: Training batches in an epoch. Validation follows an epoch.
        eval_episodes: Episodes of all processes together that are played to validate, test or predict.
        seed: Of the environments. The policy's noise has the seed of the run (`seed_everything`).
        vectorization: Whether environments run in turn ("sync") or each in a process of its own ("async"), which pays
            where a step takes over a millisecond.
        scale_observations: Whether observations are scaled by running statistics.
        greedy_evaluation: Whether evaluation takes the most probable action instead of drawing one.
        max_episode_steps: Steps after which an episode is truncated; None for what the environment was registered with.
            Give it for an environment that might never end: evaluation plays to the end.
        env_options: Keyword arguments of the environment.

    Raises:
        ModuleNotFoundError: Gymnasium is not installed.
        ValueError: There is no such environment, it has no fixed size of observations, or a number is out of range.
        TypeError: Its actions are of no supported kind; or, when `fit` starts, the module cannot act.

    Source: Towers et al. (2024), *Gymnasium: a standard interface for reinforcement learning environments*,
    https://arxiv.org/abs/2407.17032.

    Example:
        >>> data = Gymnasium("CartPole-v1", num_envs=2, num_steps=16)
        >>> data.observation_size, data.action_kind, data.action_sizes
        (4, 'discrete', [2])
    """

    def __init__(
        self,
        env: str | Callable[..., Any] = "CartPole-v1",
        *,
        num_envs: int = 8,
        num_steps: int = 32,
        steps_per_epoch: int = 100,
        eval_episodes: int = 10,
        seed: int = 0,
        vectorization: Literal["sync", "async"] = "sync",
        scale_observations: bool = True,
        greedy_evaluation: bool = False,
        max_episode_steps: int | None = None,
        env_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        require_gymnasium()
        for name, value, least in (
            ("num_envs", num_envs, 1),
            ("num_steps", num_steps, 1),
            ("steps_per_epoch", steps_per_epoch, 1),
            ("eval_episodes", eval_episodes, 1),
            ("seed", seed, 0),
            ("max_episode_steps", 1 if max_episode_steps is None else max_episode_steps, 1),
        ):
            check_integer(name, value, least)
        if vectorization not in ("sync", "async"):
            raise ValueError(f'vectorization must be "sync" or "async", got {vectorization!r}.')
        self.save_hyperparameters()
        self.num_envs, self.num_steps, self.steps_per_epoch = num_envs, num_steps, steps_per_epoch
        self.eval_episodes, self.seed, self.vectorization = eval_episodes, seed, vectorization
        self.greedy_evaluation = greedy_evaluation
        self.maker = Maker(env, env_options or {}, max_episode_steps)
        one = self.maker()
        try:
            self.actions = Actions(one.action_space)
            self.observation_size = int(cast(Any, one.observation_space).shape[0])
        finally:
            one.close()
        self.scale = RunningScale(self.observation_size) if scale_observations else None
        self._collector: Collector | None = None
        self._evaluated: VectorEnv[Any, Any, Any] | None = None

    @property
    def action_kind(self) -> ActionKind:
        """What kind of action the environment takes."""
        return self.actions.kind

    @property
    def action_sizes(self) -> list[int]:
        """The sizes of an action, whose meaning depends on its kind."""
        return list(self.actions.sizes)

    def __str__(self) -> str:  # Lightning's own fails on loaders that are not torch's
        return f"Gymnasium({', '.join(f'{name}={value!r}' for name, value in self.hparams.items())})"

    def setup(self, stage: str) -> None:
        """Refuse a module that cannot act, and processes that would have no episode to play."""
        module, world_size = self._trainer().lightning_module, self._trainer().world_size
        if not isinstance(module, Policy):
            raise TypeError(
                "Gymnasium needs a module that acts (methods `act` and `acting`, see "
                f"lightning_estimators.rollout.Policy), such as PolicyGradient; got {type(module).__name__}."
            )
        if self.eval_episodes < world_size:
            raise ValueError(
                f"eval_episodes must be at least 1 for each process, {world_size} in all, got {self.eval_episodes}."
            )

    def train_dataloader(self) -> Rollouts:
        """Batches that are collected as they are asked for."""
        trainer = self._trainer()
        return Rollouts(
            self.collect,
            self.steps_per_epoch,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            limit=trainer.limit_train_batches,
            batches_begun=lambda: trainer.fit_loop.epoch_loop.batch_progress.total.ready,
        )

    def val_dataloader(self) -> PlayedOnce:
        """One batch of episodes, from the same seeds at each validation."""
        return PlayedOnce(lambda: self._play(Purpose.VALIDATE))

    def test_dataloader(self) -> PlayedOnce:
        """One batch of episodes, from other seeds."""
        return PlayedOnce(lambda: self._play(Purpose.TEST))

    def predict_dataloader(self) -> PlayedOnce:
        """One batch of episodes, from other seeds again."""
        return PlayedOnce(lambda: self._play(Purpose.PREDICT))

    def collect(self, number: int) -> Rollout:
        """Let the module in training act, and return the batch.

        Args:
            number: Of batches that were collected before, over the whole run.
        """
        trainer = self._trainer()
        if self._collector is None:
            # The number, so that a continued run does not see the episodes of its beginning once more.
            seeds = seeds_for(self.num_envs, self.seed, Purpose.TRAIN, number, trainer.global_rank)
            environments = self.maker.vector(self.num_envs, in_processes=self.vectorization == "async")
            self._collector = Collector(environments, self.actions, self.num_steps, seeds, self.scale)
        with trainer.precision_plugin.train_step_context():
            return self._collector.collect(self._policy(), number, self._put(), self._total())

    def rollouts(self, policy: Policy) -> Iterator[Rollout]:
        """Yield rollouts that a policy acts as it is now, without end, for figures at fixed weights.

        Training does not depend on it, and no Trainer is needed: `compare(module, data.rollouts(module))`.

        Args:
            policy: What acts, in the state that it has when a rollout is asked for.
        """
        settings = self.num_envs, self.num_steps, self.seed, self.scale, self.vectorization == "async"
        return rollouts_at_fixed_weights(policy, self.maker, self.actions, *settings)

    def record(self, folder: str, name: str, which: int = 0) -> Episodes:
        """Let the module play one episode, and write a video of it to `folder`, as `name.mp4`.

        Args:
            folder: Where to write; it is created.
            name: Of the file.
            which: Number of the episode's seed.

        Raises:
            ValueError: The environment makes no pictures.
        """
        (seed,) = seeds_for(1, self.seed, Purpose.VIDEO, which)
        with self._trainer().precision_plugin.val_step_context():
            return record_episode(
                self._policy(),
                self.maker,
                self.actions,
                seed,
                folder,
                name,
                scale=self.scale,
                greedy=self.greedy_evaluation,
                put=self._put(),
            )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave a rollout where it is if that is the right place; to look at all its tensors takes time."""
        if isinstance(batch, Rollout) and batch.observations.device == device:
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics of observations."""
        return {} if self.scale is None else {"scale": self.scale.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the statistics of a checkpoint, and say what else goes on and what does not."""
        if self.scale is not None and "scale" in state_dict:
            self.scale.load_state_dict(state_dict["scale"])
        if self._trainer().state.fn == TrainerFn.FITTING:
            rank_zero_info(
                "Training goes on from the checkpoint's weights, optimizers, counters of noise and statistics of "
                "observations. Environments cannot be saved: they begin new episodes."
            )

    def teardown(self, stage: str) -> None:
        """Close the environments."""
        collector, evaluated, self._collector, self._evaluated = self._collector, self._evaluated, None, None
        for environments in (collector.environments if collector else None, evaluated):
            if environments is not None:
                environments.close()

    def on_exception(self, exception: BaseException) -> None:
        """Close the environments; their processes may be gone already."""
        with suppress(Exception):
            self.teardown("fit")

    def _play(self, purpose: int) -> Episodes:
        trainer = self._trainer()
        seeds = seeds_for(self.eval_episodes, self.seed, purpose)[trainer.global_rank :: trainer.world_size]
        if self._evaluated is None:
            count = min(self.num_envs, len(seeds))
            self._evaluated = self.maker.vector(count, in_processes=self.vectorization == "async")
        with trainer.precision_plugin.val_step_context():
            return play_episodes(
                self._policy(),
                self._evaluated,
                self.actions,
                seeds,
                scale=self.scale,
                greedy=self.greedy_evaluation,
                put=self._put(),
            )

    def _trainer(self) -> pl.Trainer:
        if self.trainer is None:
            raise RuntimeError(
                "Gymnasium collects with the policy that a Trainer trains: call trainer.fit(module, datamodule=data)."
            )
        return self.trainer

    def _policy(self) -> Policy:
        return cast(Policy, self._trainer().lightning_module)

    def _put(self) -> Callable[[Tensor], Tensor] | None:
        """What brings a tensor to the module's device and precision; None where it is there already."""
        trainer, device = self._trainer(), self._trainer().lightning_module.device
        convert = trainer.precision_plugin.convert_input
        if device.type == "cpu" and trainer.precision in ("32-true", "16-mixed", "bf16-mixed"):
            return None
        return lambda tensor: cast(Tensor, convert(tensor.to(device, non_blocking=True)))

    def _total(self) -> Callable[[Tensor], Tensor] | None:
        trainer = self._trainer()
        if trainer.world_size == 1:
            return None
        device = trainer.lightning_module.device
        return lambda tensor: cast(Tensor, trainer.strategy.reduce(tensor.to(device), reduce_op="sum"))
