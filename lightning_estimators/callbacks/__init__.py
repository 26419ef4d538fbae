"""Watching gradient estimation: callbacks that never change what they watch."""

from lightning_estimators.callbacks.gradient_variance import GradientVariance
from lightning_estimators.callbacks.reconstructions import Reconstructions

__all__ = ["GradientVariance", "Reconstructions"]
