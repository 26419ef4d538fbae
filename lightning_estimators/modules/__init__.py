"""LightningModules: the training step for any estimator, and the models built on it."""

from lightning_estimators.modules.acting import ActingModule
from lightning_estimators.modules.base import EstimatorModule
from lightning_estimators.modules.continuous import ContinuousLatentModel
from lightning_estimators.modules.discrete import DiscreteLatentModel
from lightning_estimators.modules.expected_policy_gradient import ExpectedPolicyGradient
from lightning_estimators.modules.gamma_toy import GammaToyModel
from lightning_estimators.modules.optimizers import chain_optimizers, clip_gradients_of_parts
from lightning_estimators.modules.policy_gradient import PolicyGradient
from lightning_estimators.modules.regression import BayesianLogisticRegression
from lightning_estimators.modules.toy import ToyModel

__all__ = [
    "ActingModule",
    "BayesianLogisticRegression",
    "ContinuousLatentModel",
    "DiscreteLatentModel",
    "EstimatorModule",
    "ExpectedPolicyGradient",
    "GammaToyModel",
    "PolicyGradient",
    "ToyModel",
    "chain_optimizers",
    "clip_gradients_of_parts",
]
