"""Objectives that are another function of the costs of several samples than their mean."""

from __future__ import annotations

from lightning_estimators.estimators.base import GradientEstimator

__all__ = ["averages_costs"]


def averages_costs(estimator: GradientEstimator) -> bool:
    """Whether the objective of an estimator is the mean of the costs of its samples: `combine` is not overridden."""
    return type(estimator).combine is GradientEstimator.combine
