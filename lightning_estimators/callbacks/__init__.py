"""Watching and guarding training: callbacks for any LightningModule that holds gradient estimators."""

from lightning_estimators.callbacks.episode_video import EpisodeVideo
from lightning_estimators.callbacks.estimator_comparison import EstimatorComparison
from lightning_estimators.callbacks.gradient_variance import GradientVariance
from lightning_estimators.callbacks.reconstructions import Reconstructions
from lightning_estimators.modules.changed_options import ChangedOptions
from lightning_estimators.modules.episode_returns import EpisodeReturns
from lightning_estimators.modules.exact_resume import ExactResume
from lightning_estimators.modules.finite_training import FiniteTraining
from lightning_estimators.modules.sigterm import SaveOnSigterm

__all__ = [
    "ChangedOptions",
    "EpisodeReturns",
    "EpisodeVideo",
    "EstimatorComparison",
    "ExactResume",
    "FiniteTraining",
    "GradientVariance",
    "Reconstructions",
    "SaveOnSigterm",
]
