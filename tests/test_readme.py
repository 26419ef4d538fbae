"""The README's Python runs, and the file stays short."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.fixture(scope="module")
def namespace():
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), scope)
    return scope


def test_the_subclass_trains(namespace):
    assert namespace["Coins"].__mro__[1].__name__ == "EstimatorModule"


def test_the_plug_in_keeps_its_claims(namespace):
    from lightning_estimators.testing import check_estimator

    check_estimator(namespace["Score"])


def test_is_at_most_150_lines():
    assert len(README.splitlines()) <= 150


def test_every_estimator_and_baseline_is_in_the_table():
    from lightning_estimators import baselines, estimators

    helpers = {"Baseline", "ControlVariate", "Estimate", "GradientEstimator"}
    public = (set(estimators.__all__) | set(baselines.__all__)) - helpers
    assert sorted(name for name in public if f"`{name}`" not in README) == []
