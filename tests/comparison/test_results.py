"""What comparisons return: names, candidates, tables, and recommendations that their errors allow."""

import json
import math
import signal
import sys
import time

import pytest
import torch
from torch.distributions import Bernoulli, Independent

import lightning_estimators.estimators
from lightning_estimators import compare
from lightning_estimators.comparison import Reference, Row
from lightning_estimators.comparison.candidates import describe, known_estimators
from lightning_estimators.comparison.limits import TooSlowError, time_limit
from lightning_estimators.comparison.recommendation import recommend
from lightning_estimators.estimators import REBAR, RELAX, Concrete, GradientEstimator, StochasticBackprop
from lightning_estimators.moment_errors import MomentsWithErrors
from lightning_estimators.networks import Surrogate
from tests.comparison.misbehaving import Crashes

REFERENCE = Reference("exact", ["exact"], norm=2.0, error=0.0)


def row(name, variance, seconds=1.0, claims=True, error=0.01, **more):
    rest = {"squared_bias": 0.0, "squared_bias_error": 0.001, "bias_z": 0.0, "work_variance": variance * seconds}
    known = {"variance": variance, "variance_error": error * variance, "step_seconds": seconds, "draws": 100}
    return Row(name=name, claims_unbiased=claims, **(known | rest | more))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row("A", 34.0, current=True), row("B", 1.0)], "unbiased: B, 34 times less variance × time than your A."),
        ([row("A", 1.0, current=True), row("B", 34.0)], "keep your A: 34 times less variance × time than B"),
        ([row("A", 1.05, current=True), row("B", 1.0)], "unbiased: B, but within the errors it is as good as your A"),
        ([row("A", 5.0, current=True, error=0.9), row("B", 1.0)], "within the errors"),
        ([row("A", 5.0), row("B", 0.0)], "unbiased: B, which is exact here, against A"),
        (
            [row("A", 9.0, current=True), row("C", 1.0, claims=False, squared_bias=0.0016, squared_bias_error=1e-4)],
            "if a bias of 2 % of the gradient's norm is acceptable: C, 9.0 times less variance × time than A",
        ),
        (
            [row("A", 9.0, current=True), row("C", 1.0, claims=False, squared_bias=0.0, squared_bias_error=8e-4)],
            "if a bias too small to be measured here, at most 2 % of the gradient's norm is acceptable: C",
        ),
        ([row("A", 1.0, current=True), row("L", 0.1, bias_z=9.0, squared_bias=9.0)], "L says that it is unbiased, but"),
        ([Row(name="A", refused="no")], "nothing could be measured"),
    ],
)
def test_recommendation(rows, words):
    assert words in recommend(rows, REFERENCE, None)


def test_recommendation_knows_when_data_vary_more():
    said = recommend([row("A", 1.0, seconds=1.0), row("B", 0.5, seconds=9.0)], REFERENCE, 100.0)
    assert "of the unbiased ones there, A is the fastest" in said


def test_names_tell_settings_that_differ_from_defaults():
    assert describe(StochasticBackprop()) == "StochasticBackprop()"
    assert describe(Concrete(0.5, straight_through=True)) == "Concrete(straight_through=True)"
    assert describe(RELAX(Surrogate([3]))) == "RELAX(surrogate=Surrogate(hidden=[3]))"


def test_all_exports_and_imported_subclasses_are_known():
    known = {type(estimator) for estimator in known_estimators()}
    exported = [getattr(lightning_estimators.estimators, name) for name in lightning_estimators.estimators.__all__]
    classes = {cls for cls in exported if isinstance(cls, type) and issubclass(cls, GradientEstimator)}
    abstract = {cls for cls in classes if cls.__abstractmethods__}
    assert classes - abstract <= known
    assert not abstract & known
    assert Crashes in known
    names = {describe(estimator) for estimator in known_estimators()}
    assert {"Concrete(straight_through=True)", "REINFORCE(baseline=LeaveOneOut(), num_samples=4)"} <= names


def test_results_are_plain_data():
    q = Independent(Bernoulli(logits=torch.zeros(2)), 1)
    result = compare((q, lambda b: b.sum(-1)), estimators=[StochasticBackprop(), Crashes()], draws=5)
    kept = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert kept["rows"][0]["signal_to_noise"] == "inf"
    assert kept["rows"][1]["variance"] is None
    assert "refused: Crashes(): RuntimeError: it broke" in str(result)
    assert len(result.plot().axes) == 1


def test_frame_has_a_line_for_each_candidate_and_a_column_for_each_figure():
    q = Independent(Bernoulli(logits=torch.zeros(2)), 1)
    result = compare((q, lambda b: b.sum(-1)), estimators=[StochasticBackprop(), Crashes()], draws=5)
    frame = result.to_frame()
    assert list(frame["name"]) == ["StochasticBackprop()", "Crashes()"]
    assert frame["draws"].tolist() == [5, 0]
    assert frame["variance"].isna().tolist() == [False, True]
    assert frame["logits/q/variance"][0] == result.rows[0].groups["logits/q"].variance
    assert set(frame.columns) >= {*vars(result.rows[0])} - {"groups"}


def test_frame_without_pandas_says_what_to_do(monkeypatch):
    q = Independent(Bernoulli(logits=torch.zeros(2)), 1)
    result = compare((q, lambda b: b.sum(-1)), estimators=[StochasticBackprop()], draws=5)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        result.to_frame()


def test_time_limit_gives_timers_back():
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TooSlowError, match="share of the budget"), time_limit(0.05):
        time.sleep(10)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_time_limit_rings_again_where_python_drops_what_is_raised(monkeypatch):
    dropped = []
    monkeypatch.setattr("lightning_estimators.comparison.limits.AGAIN", 0.5)
    monkeypatch.setattr(sys, "unraisablehook", lambda found: dropped.append(found.exc_type))

    class Cleared:
        def __del__(self):
            time.sleep(0.2)  # rings here

    def work():
        Cleared()
        time.sleep(10)

    with pytest.raises(TooSlowError), time_limit(0.05):
        work()
    assert dropped == [TooSlowError]


def test_moments_with_errors_against_brute_force():
    torch.manual_seed(0)
    root = torch.randn(3, 3, dtype=torch.float64)
    draws = torch.randn(4000, 3, dtype=torch.float64) @ root.T
    moments = MomentsWithErrors({"both": ["a", "b"]})
    for draw in draws:
        moments.add({"a": draw[:1], "b": draw[1:]})
    covariance = root @ root.T
    assert moments.total_variance("both") == pytest.approx(float(draws.var(0).sum()))
    assert moments.total_variance("a") == pytest.approx(float(draws[:, 0].var()))
    # The average of squared products of two draws, whose relative error is 6 % here.
    assert moments.squared_trace("both") == pytest.approx(float((covariance @ covariance).trace()), rel=0.25)
    # Of normal draws the variance of the squared distance from the mean is twice the trace of the squared covariance.
    error = math.sqrt(2 * float((covariance @ covariance).trace()) / 4000)
    assert moments.variance_error("both") == pytest.approx(error, rel=0.15)


def test_learning_lowers_the_variance_in_its_curve():
    q = Independent(Bernoulli(logits=torch.zeros(50, 3)), 1)
    rebar = REBAR(eta=0.0, learn_temperature=False)
    pair = (q, lambda b: (b - 0.45).square().sum(-1))
    (found,) = compare(pair, estimators=[rebar], draws=50, learning_steps=200).rows
    assert found.learning_curve[-1][1] < 0.7 * found.learning_curve[0][1]
    assert rebar.eta.item() == 0.0
