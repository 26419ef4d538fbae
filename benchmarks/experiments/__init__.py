"""The experiments of both papers."""

from __future__ import annotations

from benchmarks.experiment import Experiment
from benchmarks.experiments.discrete import Discrete

__all__ = ["EXPERIMENTS"]

EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in (Discrete(),)}
"""By the name of the command."""
