"""Cost functions f: any callable, and objectives that know how they change when one coordinate of z moves."""

from lightning_estimators.objectives.base import Objective
from lightning_estimators.objectives.bernoulli_linear import BernoulliLinear
from lightning_estimators.objectives.callable import CallableObjective, as_objective
from lightning_estimators.objectives.exponential import ExponentialCost
from lightning_estimators.objectives.first_layer_linear import FirstLayerLinear
from lightning_estimators.objectives.gaussian_linear import GaussianLinear
from lightning_estimators.objectives.observed import Observed
from lightning_estimators.objectives.per_example import per_example
from lightning_estimators.objectives.scaled import Scaled
from lightning_estimators.objectives.separable import Separable
from lightning_estimators.objectives.squared import SquaredCost
from lightning_estimators.objectives.sum import Sum

__all__ = [
    "BernoulliLinear",
    "CallableObjective",
    "ExponentialCost",
    "FirstLayerLinear",
    "GaussianLinear",
    "Objective",
    "Observed",
    "Scaled",
    "Separable",
    "SquaredCost",
    "Sum",
    "as_objective",
    "per_example",
]
