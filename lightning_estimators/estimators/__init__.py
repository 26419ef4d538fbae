"""Gradient estimators: `estimator(q, f)`, one file each; torch only."""

from lightning_estimators.estimators.arms import ARMS
from lightning_estimators.estimators.base import GradientEstimator
from lightning_estimators.estimators.carms import CARMS
from lightning_estimators.estimators.concrete import Concrete
from lightning_estimators.estimators.control_variate import ControlVariate
from lightning_estimators.estimators.cost_gradient import check_differentiable, value_and_gradient
from lightning_estimators.estimators.disarm import DisARM
from lightning_estimators.estimators.double_cv import DoubleCV
from lightning_estimators.estimators.enumeration import Enumeration
from lightning_estimators.estimators.estimate import Estimate
from lightning_estimators.estimators.fini import Fini
from lightning_estimators.estimators.generalized_reparameterization import GeneralizedReparameterization
from lightning_estimators.estimators.gumbel_rao import GumbelRao
from lightning_estimators.estimators.hard_concrete import HardConcrete
from lightning_estimators.estimators.lax import LAX
from lightning_estimators.estimators.muprop import MuProp
from lightning_estimators.estimators.pathwise import Pathwise
from lightning_estimators.estimators.rebar import REBAR
from lightning_estimators.estimators.reinforce import REINFORCE
from lightning_estimators.estimators.reinmax import ReinMax
from lightning_estimators.estimators.relax import RELAX
from lightning_estimators.estimators.relaxed_rebar import RelaxedREBAR
from lightning_estimators.estimators.rodeo import RODEO
from lightning_estimators.estimators.stochastic_backprop import StochasticBackprop
from lightning_estimators.estimators.straight_through import StraightThrough
from lightning_estimators.estimators.straight_through_estimator import StraightThroughEstimator
from lightning_estimators.estimators.ugc import UGC
from lightning_estimators.estimators.unordered_set import UnorderedSet
from lightning_estimators.estimators.vimco import VIMCO

__all__ = [
    "ARMS",
    "CARMS",
    "LAX",
    "REBAR",
    "REINFORCE",
    "RELAX",
    "RODEO",
    "UGC",
    "VIMCO",
    "Concrete",
    "ControlVariate",
    "DisARM",
    "DoubleCV",
    "Enumeration",
    "Estimate",
    "Fini",
    "GeneralizedReparameterization",
    "GradientEstimator",
    "GumbelRao",
    "HardConcrete",
    "MuProp",
    "Pathwise",
    "ReinMax",
    "RelaxedREBAR",
    "StochasticBackprop",
    "StraightThrough",
    "StraightThroughEstimator",
    "UnorderedSet",
    "check_differentiable",
    "value_and_gradient",
]
