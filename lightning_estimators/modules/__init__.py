"""LightningModules: the training step for any estimator, and the models built on it."""

from lightning_estimators.modules.base import EstimatorModule

__all__ = ["EstimatorModule"]
