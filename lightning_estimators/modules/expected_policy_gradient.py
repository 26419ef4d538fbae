"""Policy gradients that also learn from actions that were not taken, as far as a learned critic knows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributions import Distribution

from lightning_estimators.estimators import GradientEstimator, StochasticBackprop
from lightning_estimators.modules.policy_gradient import PolicyGradient
from lightning_estimators.networks import MLP
from lightning_estimators.policies import ActionValues
from lightning_estimators.rollout import ActionKind

__all__ = ["ExpectedPolicyGradient"]


class ExpectedPolicyGradient(PolicyGradient):
    r"""A policy gradient with a learned Q(s, a), whose expectation under the policy is differentiated without sampling.

    $$\nabla J = E\big[(A - Q(s, a))\, \nabla \log \pi(a|s)\big] + E\big[\nabla E_{a' \sim \pi}[Q(s, a')]\big].$$

    The first term is that of `PolicyGradient`, by its estimator, with what Q leaves of the advantage A. The second
    takes Q at other actions than the one that was taken, which any estimator may do: `changes`. For choices,
    `StochasticBackprop` takes all alternatives of one choice at a time, which is exact for a single choice; for
    real-valued actions `Pathwise` gives the gradient of Q in the action, as deterministic policy gradients have it.

    - With `corrected=True` Q is a control variate: unbiased whatever Q is, as far as `PolicyGradient` is. Its variance
      is lower the better Q predicts the advantage.
    - With `corrected=False` the first term is left out. This is the expected policy gradient, which is biased unless Q
      is exact; then it has no variance from the action.

    Q learns to predict the advantages as they enter the gradient, by squared error weighted by `critic_coef`, with the
    critic's optimizer.

    Args:
        estimator: Of the first term, see `PolicyGradient`.
        observation_size: See there; so are the next two.
        action_kind: See there.
        action_sizes: See there.
        changes: Estimates the gradient of the second term; `StochasticBackprop()` by default.
        corrected: Whether there is a first term.
        action_values_hidden: Widths of the hidden layers of Q, with tanh between them.
        action_values: A network in place of that, from states and actions, `(..., observation_size + entries of an
            action) -> (..., 1)`; a choice has one entry for each alternative.
        **settings: Those of `PolicyGradient`.

    Raises:
        TypeError: `changes` does not take this kind of actions.
        ValueError: The network returns another shape; an estimator that learns would not be used; and as for
            `PolicyGradient`.

    Source: Gu et al. (2017), *Q-Prop*, https://arxiv.org/abs/1611.02247, with a correction; Ciosek and Whiteson (2018),
    *Expected policy gradients*, https://arxiv.org/abs/1706.05374, and Asadi et al. (2017), *Mean actor critic*,
    https://arxiv.org/abs/1709.00503, without.

    Example:
        >>> from lightning_estimators.estimators import REINFORCE
        >>> model = ExpectedPolicyGradient(REINFORCE(), 4, "discrete", [3])
        >>> sorted(model.parameter_groups())
        ['critic', 'critic_of_actions', 'policy']
    """

    def __init__(
        self,
        estimator: GradientEstimator,
        observation_size: int,
        action_kind: ActionKind,
        action_sizes: Sequence[int],
        *,
        changes: GradientEstimator | None = None,
        corrected: bool = True,
        action_values_hidden: Sequence[int] = (64, 64),
        action_values: nn.Module | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(estimator, observation_size, action_kind, action_sizes, **settings)
        if not corrected and any(p.requires_grad for p in estimator.parameters()):
            raise ValueError(
                f"corrected=False leaves out the term that {type(estimator).__name__} would learn from: expected an "
                "estimator that learns nothing, such as REINFORCE(NoBaseline())."
            )
        self.corrected = corrected
        observations = self.example_observations()
        q = self.distribution(observations)
        entries = observation_size + q.event_shape.numel()
        network = action_values or MLP(entries, action_values_hidden, 1)
        self.critic_of_actions = ActionValues(network, len(q.event_shape))
        self.critic_of_actions(observations, q.sample())
        self.changes = changes or StochasticBackprop()
        self.changes.prepare(q, observations)

    def policy_costs(
        self, q: Distribution, actions: Tensor, advantages: Tensor, log_prob: Tensor, states: Tensor
    ) -> Tensor:
        """Return the costs of both terms, and the squared error of Q."""
        predicted = self.critic_of_actions(states, actions)
        # Also where it is not used, the first term holds the batch to the policy that acted it.
        left = advantages - predicted.detach()
        costs = super().policy_costs(q, actions, left, log_prob, states)
        if not self.corrected:
            costs = costs.detach()
        expected: Tensor = self.changes(q, lambda other: -self.critic_of_actions.fixed(states, other), states)
        total: Tensor = costs + expected + self.critic_coef * (predicted - advantages).square()
        return total

    def critic_parameters(self) -> list[nn.Parameter]:
        """Return what `critic_optimizer` trains: V and Q."""
        return super().critic_parameters() + [p for p in self.critic_of_actions.parameters() if p.requires_grad]
