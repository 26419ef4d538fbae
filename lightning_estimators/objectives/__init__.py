"""Costs that know their structure."""

from lightning_estimators.objectives.base import CallableObjective, Objective, as_objective

__all__ = ["CallableObjective", "Objective", "as_objective"]
