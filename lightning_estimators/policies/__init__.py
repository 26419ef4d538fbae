"""Parts of policies for reinforcement learning: distributions over actions, advantages, a critic. Torch only."""

from lightning_estimators.policies.action_kinds import action_distribution
from lightning_estimators.policies.action_values import ActionValues
from lightning_estimators.policies.actions import ActionDistribution
from lightning_estimators.policies.advantages import generalized_advantages, less_the_others
from lightning_estimators.policies.binary import BinaryActions
from lightning_estimators.policies.collapse import CollapseWatch
from lightning_estimators.policies.critic import Critic
from lightning_estimators.policies.cut_off import CutOffWatch
from lightning_estimators.policies.discrete import DiscreteActions
from lightning_estimators.policies.gaussian import GaussianActions
from lightning_estimators.policies.past_scale import PastScale

__all__ = [
    "ActionDistribution",
    "ActionValues",
    "BinaryActions",
    "CollapseWatch",
    "Critic",
    "CutOffWatch",
    "DiscreteActions",
    "GaussianActions",
    "PastScale",
    "action_distribution",
    "generalized_advantages",
    "less_the_others",
]
