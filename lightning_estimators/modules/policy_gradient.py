"""Policies that learn by acting: any estimator, on costs that were observed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.optim import Optimizer

from lightning_estimators import policies
from lightning_estimators.estimators import GradientEstimator
from lightning_estimators.logged_steps import step_is_logged
from lightning_estimators.modules.acting import ActingModule
from lightning_estimators.modules.optimizers import chain_optimizers, check_maker
from lightning_estimators.modules.policy_checks import check_estimator_of_policy, check_settings
from lightning_estimators.networks import MLP
from lightning_estimators.objectives import Observed
from lightning_estimators.policies import (
    ActionDistribution,
    CollapseWatch,
    Critic,
    CutOffWatch,
    PastScale,
    generalized_advantages,
    less_the_others,
)
from lightning_estimators.rollout import ActionKind, Rollout

__all__ = ["PolicyGradient"]


class PolicyGradient(ActingModule):
    r"""Maximises the expected return $J = E_\pi[\sum_t \gamma^t r_t]$ of a policy by any estimator of its gradient.

    Each step of a batch is one call of the estimator, at the action that was taken, whose cost is minus its advantage
    A: `estimator(q, Observed(actions, -advantages, log_prob), context=observations)`. With `REINFORCE` this is the
    advantage actor-critic (A2C). With `RELAX` (discrete actions) and `LAX` (real-valued ones) the surrogate network
    sees the relaxed action and the state, and takes from the variance what the critic leaves: these are the methods of
    Grathwohl et al. (2018), for discrete actions without a critic (`use_critic=False`, where the advantage is the
    return to go) and for real-valued ones with one. Where it was measured (CartPole, Acrobot, InvertedPendulum),
    neither learned faster than A2C. A batch whose actions were drawn by another policy is refused.

    What is unbiased, and what is not:

    - With `gae_lambda=1` the gradient is that of the return, whatever the critic says. Below 1 it is biased as far as
      the critic is wrong, in exchange for less variance.
    - With `gamma` below 1 it is usual to weigh all steps of an episode alike, although $J$ weighs step t by $\gamma^t$:
      the result is the gradient of no function. `discount_steps=True` gives the weights back.
    - `normalize_advantages="batch"` (subtract the mean of the batch, divide by its standard deviation) is biased, since
      every action changes both. `"running"` divides by the size of *past* advantages: unbiased up to a positive factor.
    - `leave_one_out=True` subtracts what the other environments got at the same step: unbiased.
    - The end of a batch cuts episodes off. The critic stands for the rest; without one the rest counts as nothing.
    - The entropy bonus maximises another objective on purpose: $J$ plus `entropy_coef` times the entropy.

    The defaults did not collapse: plain advantages, bounded gradients, a critic that learns faster, some entropy bonus.

    Logged besides what `EstimatorModule` logs, at logged steps:

    - `train/entropy`: mean entropy of the policy in the states of the batch, in nats.
    - `train/exploration`: the same as a share of its maximum; for `GaussianActions`, scales over their initial ones. A
      warning is given if it falls below .01 while returns fall.
    - `train/critic_loss`: mean squared difference between V and what it is to predict.

    Args:
        estimator: Estimates the gradient; one that takes costs as they were observed (`REINFORCE`, `RELAX`, `LAX`),
            with one sample.
        observation_size: Entries of one observation, as the datamodule says (on the command line by itself).
        action_kind: "discrete", "multi_discrete", "multi_binary" or "box" (`rollout.ActionKind`), as it says.
        action_sizes: The sizes that go with it.
        hidden: Widths of the hidden layers of the policy, with tanh between them.
        policy: A network in place of that, `(B, observation_size) -> (B, num_outputs of the action distribution)`.
        action_distribution: A distribution in place of that of the kind: `GaussianActions(1, initial_scale=0.3)`, or an
            `ActionDistribution` of one's own.
        use_critic: Whether there is a critic V.
        critic_hidden: Widths of the hidden layers of the critic, with tanh between them.
        critic: A network in place of that, `(B, observation_size) -> (B, 1)` or `(B,)`.
        gamma: Discount γ of a step, in [0, 1].
        gae_lambda: λ of the advantages, in [0, 1], see `policies.generalized_advantages`; without a critic always 1.
        discount_steps: Whether step t of an episode is weighted by $\gamma^t$.
        leave_one_out: Whether to subtract the mean advantage of the other environments at the same step
            (`policies.less_the_others`), with or without a critic.
        normalize_advantages: "batch", "running" or None, as above.
        critic_coef: Weight of the critic's squared error in the loss.
        entropy_coef: Weight of the entropy, in units of reward.
        max_gradient_norm: Bound on the norm of the gradients of policy, critic and estimator, each by itself, or None;
            `Trainer(gradient_clip_val=...)` takes its place.
        optimizer: Makes the optimizer of the policy.
        critic_optimizer: Makes the optimizer of the critic, whose learning rate stays as it is.
        **training: Other arguments of `EstimatorModule`.

    Raises:
        TypeError: The estimator does not take observed costs, or not this kind of actions.
        ValueError: A number is out of range, or a network returns another shape; while training, a batch was acted by
            another policy.

    Source: Williams (1992), https://doi.org/10.1007/BF00992696; Mnih et al. (2016), *Asynchronous methods for deep
    reinforcement learning*, https://arxiv.org/abs/1602.01783; Grathwohl et al. (2018), *Backpropagation through the
    void*, section 3.3, https://arxiv.org/abs/1711.00123.

    Example:
        >>> import torch
        >>> from lightning_estimators.estimators import RELAX
        >>> _ = torch.manual_seed(0)
        >>> model = PolicyGradient(RELAX(), observation_size=4, action_kind="discrete", action_sizes=[3])
        >>> seen = torch.randn(5, 2, 4)  # 5 steps in 2 environments
        >>> actions, log_prob = zip(*(model.act(seen[t]) for t in range(5)))
        >>> ended, ones = torch.zeros(5, 2, dtype=torch.bool), torch.ones(5, 2)
        >>> batch = Rollout(
        ...     seen, torch.stack(actions), ones, terminated=ended, truncated=ended, next_observations=seen,
        ...     log_prob=torch.stack(log_prob), elapsed_steps=ones.cumsum(0).long() - 1, episode_returns=ones.cumsum(0),
        ... )
        >>> model.loss(batch).shape, sorted(model.parameter_groups())
        (torch.Size([10]), ['critic', 'policy'])
    """

    def __init__(
        self,
        estimator: GradientEstimator,
        observation_size: int,
        action_kind: ActionKind,
        action_sizes: Sequence[int],
        *,
        hidden: Sequence[int] = (64, 64),
        policy: nn.Module | None = None,
        action_distribution: ActionDistribution | None = None,
        use_critic: bool = True,
        critic_hidden: Sequence[int] = (64, 64),
        critic: nn.Module | None = None,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        discount_steps: bool = False,
        leave_one_out: bool = False,
        normalize_advantages: Literal["batch", "running"] | None = None,
        critic_coef: float = 0.5,
        entropy_coef: float = 0.01,
        max_gradient_norm: float | None = 0.5,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(parameters, lr=0.003),
        critic_optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(parameters, lr=0.03),
        **training: Any,
    ) -> None:
        actions = action_distribution or policies.action_distribution(action_kind, action_sizes)
        policy = policy or MLP(observation_size, hidden, actions.num_outputs)
        super().__init__(policy, actions, observation_size, optimizer=optimizer, **training)
        check_settings(
            gamma=gamma,
            gae_lambda=gae_lambda,
            critic_coef=critic_coef,
            entropy_coef=entropy_coef,
            max_gradient_norm=max_gradient_norm,
            normalize_advantages=normalize_advantages,
        )
        check_maker("critic_optimizer", critic_optimizer, makes="an optimizer from parameters")
        self.critic: Critic | None = None
        if use_critic:
            self.critic = Critic(critic or MLP(observation_size, critic_hidden, 1))
            self.critic(self.example_observations())
        elif critic is not None:
            raise ValueError("PolicyGradient got a critic and use_critic=False: leave one of them out.")
        self.gamma, self.gae_lambda, self.discount_steps = gamma, gae_lambda if use_critic else 1.0, discount_steps
        self.critic_coef, self.entropy_coef, self.max_gradient_norm = critic_coef, entropy_coef, max_gradient_norm
        self.critic_optimizer = critic_optimizer
        self.leave_one_out, self.normalize_advantages = leave_one_out, normalize_advantages
        self.past_scale = PastScale() if normalize_advantages == "running" else None
        self.estimator = estimator
        check_estimator_of_policy(estimator)
        observations = self.example_observations()
        estimator.prepare(self.distribution(observations), observations)
        self._latest: tuple[Distribution, Tensor | None, Tensor | None] | None = None  # what figures are made of
        self._collapse, self._cut_off = CollapseWatch(), CutOffWatch()

    def loss(self, batch: Rollout) -> Tensor:
        """Return minus the estimate of the return, with the critic's loss and the entropy bonus.

        It has one entry for each step, shape `(num_steps * num_envs,)`.

        Args:
            batch: A batch of actions of this policy, with its current weights.

        Raises:
            ValueError: The actions were drawn by another policy.
        """
        mask = None if batch.action_mask is None else batch.action_mask.flatten(0, 1)
        states = self._as_policy_input(batch.observations.flatten(0, 1))
        q = self.distribution(states, mask)
        values = torch.zeros_like(batch.rewards) if self.critic is None else self.critic(states).view_as(batch.rewards)
        advantages = self.advantages(batch, values.detach())
        signal = self._normalized(advantages).flatten()
        actions = self.actions.from_environment(batch.actions.flatten(0, 1))
        costs = self.policy_costs(q, actions, signal, batch.log_prob.flatten(), states)
        if self.discount_steps:
            costs = costs * self.gamma ** batch.elapsed_steps.flatten()
        if self.entropy_coef:
            costs = costs - self.entropy_coef * q.entropy()
        errors = None
        if self.critic is not None:
            errors = (values - (values.detach() + advantages)).square().flatten()
            costs = costs + self.critic_coef * errors
        self._latest = q, mask, errors
        return costs

    def policy_costs(
        self, q: Distribution, actions: Tensor, advantages: Tensor, log_prob: Tensor, states: Tensor
    ) -> Tensor:
        """Return costs whose gradient is minus that of the return, one for each step, shape `(B,)`.

        Args:
            q: The policy in the states, of batch_shape `(B,)`.
            actions: What was done there, as samples of q.
            advantages: As they enter the gradient, shape `(B,)`.
            log_prob: Of the actions when they were taken.
            states: Observations, shape `(B, observation_size)`.
        """
        return cast(Tensor, self.estimator(q, Observed(actions, -advantages, log_prob), context=states))

    def advantages(self, batch: Rollout, values: Tensor) -> Tensor:
        """Return the advantage of every step, before any normalization, shape `(num_steps, num_envs)`.

        Args:
            batch: What was acted.
            values: V of the state before each step, of the same shape, without gradient.
        """
        if self.critic is None:
            following = torch.zeros_like(values)
            self._cut_off.look(batch)
        else:
            following = self.critic.following(batch, values)
        ended = batch.terminated | batch.truncated
        return generalized_advantages(
            batch.rewards, values, following, ended, gamma=self.gamma, gae_lambda=self.gae_lambda
        )

    def critic_parameters(self) -> list[nn.Parameter]:
        """Return what `critic_optimizer` trains."""
        return [] if self.critic is None else [p for p in self.critic.parameters() if p.requires_grad]

    def training_step(self, batch: Rollout, batch_idx: int) -> Tensor:
        """Return the mean cost, and log it, the policy's entropy and the critic's loss; warn of a collapse.

        Args:
            batch: What was acted.
            batch_idx: Index of the batch in its epoch.
        """
        loss = super().training_step(batch, batch_idx)
        self._collapse.add(batch)
        latest, self._latest = self._latest, None
        if latest is not None and step_is_logged(self.trainer, batch_idx):
            for name, figure in (figures := self._figures(*latest)).items():
                self.log(f"train/{name}", figure, on_step=True, on_epoch=False, sync_dist=True)
            self._collapse.look(float(figures["exploration"]))
        return loss

    def configure_optimizers(self) -> Any:
        """Make the optimizers of policy, estimator and critic, chained to one, and their schedulers."""
        critic = self.critic_parameters()
        return chain_optimizers(
            self,
            optimizer=self.optimizer,
            surrogate_optimizer=self.surrogate_optimizer,
            lr_scheduler=self.lr_scheduler,
            surrogate_lr_scheduler=self.surrogate_lr_scheduler,
            lr_scheduler_interval=self.lr_scheduler_interval,
            others={"critic": (self.critic_optimizer, critic)} if critic else None,
        )

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Bound the gradients of policy, critic and estimator, each by itself."""
        if gradient_clip_val is None:
            gradient_clip_val, gradient_clip_algorithm = self.max_gradient_norm, "norm"
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    @torch.no_grad()
    def _figures(self, q: Distribution, mask: Tensor | None, errors: Tensor | None) -> dict[str, Tensor]:
        """Return what is logged of a step.

        Args:
            q: The policy.
            mask: Which alternatives were allowed.
            errors: Squares of the critic's errors; None without one.
        """
        figures = {"entropy": q.entropy().mean(), "exploration": self.actions.exploration(q, mask)}
        return figures if errors is None else figures | {"critic_loss": errors.mean()}

    def _normalized(self, advantages: Tensor) -> Tensor:
        if self.leave_one_out:
            advantages = less_the_others(advantages)
        if self.past_scale is not None:
            return cast(Tensor, self.past_scale(advantages))
        if self.normalize_advantages == "batch":
            deviation = advantages.std(correction=0)
            return (advantages - advantages.mean()) / deviation.clamp_min(torch.finfo(advantages.dtype).eps)
        return advantages
