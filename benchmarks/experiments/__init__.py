"""The experiments of both papers."""

from __future__ import annotations

from benchmarks.experiment import Experiment
from benchmarks.experiments.discrete import Discrete
from benchmarks.experiments.divergence import Divergence
from benchmarks.experiments.gamma import Gamma
from benchmarks.experiments.regression import Regression
from benchmarks.experiments.toy import Toy

__all__ = ["EXPERIMENTS"]

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment for experiment in (Toy(), Gamma(), Regression(), Divergence(), Discrete())
}
"""By the name of the command, in the order of the report."""
