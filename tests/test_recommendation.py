"""The experiment that tries what `compare` recommends: its rows, and how training is ended by processor time."""

import copy
import time

import pytest
import torch

from benchmarks.recommendation import TABLE, Recommendation
from benchmarks.recommendation_jobs import JOBS, costs
from lightning_estimators.comparison.candidates import describe

SETTINGS = {"job": "classifier", "seconds": 0.1, "seed": 0, "quick": 1}


@pytest.mark.parametrize("name", JOBS)
def test_jobs_are_built_with_each_of_their_estimators(name):
    job = JOBS[name]
    batch = torch.zeros(3, 1, 28, 28) if name == "mnist" else next(iter(job.data("data", 0)))
    for estimator in job.candidates:
        cost = costs(job.build(copy.deepcopy(estimator), [batch]), batch)
        assert cost.isfinite().all()
    assert len({describe(estimator) for estimator in job.candidates}) == len(job.candidates) == 6


def test_training_ends_after_its_time_without_the_evaluations(tmp_path):
    began = time.process_time()
    outcome = Recommendation().run(SETTINGS | {"estimator": "StochasticBackprop()"}, tmp_path, "data")
    assert time.process_time() - began > 0.1
    curve = outcome.curves["cost"]
    assert len(curve["step"]) == 11
    assert curve["step"] == sorted(curve["step"])
    assert outcome.metrics == {"cost": curve["value"][-1], "steps": curve["step"][-1]}
    assert curve["value"][-1] < curve["value"][0]


def test_the_plan_has_a_table_and_each_candidate_once_a_seed():
    runs = Recommendation().plan({}, quick=False)
    assert len(runs) == len(JOBS) * (1 + 2 * 6)
    assert sum(run.settings["estimator"] == TABLE for run in runs) == len(JOBS)
