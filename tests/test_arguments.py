"""Constructor arguments of another type than the annotated one are refused in words, by one check for all classes."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import nn

from lightning_estimators.arguments import CheckedArguments
from lightning_estimators.baselines import LearnedBaseline, MovingAverage
from lightning_estimators.estimators import REBAR, REINFORCE, RELAX, Enumeration, StochasticBackprop
from lightning_estimators.modules import (
    BayesianLogisticRegression,
    ContinuousLatentModel,
    DiscreteLatentModel,
    ToyModel,
)
from lightning_estimators.networks import MLP, LatentMLP, Surrogate

SHAPE = (1, 8, 8)

REFUSED = [
    (lambda: REBAR(temperature="0.5"), r"REBAR: temperature must be a number, got '0.5' \(str\)"),
    (lambda: MLP(3, 7, 1), r"MLP: hidden must be a sequence of int, got 7 \(int\)"),
    (lambda: MLP(3, [2.5], 1), "hidden must be a sequence of int"),
    (lambda: MLP(3, "77", 1), "hidden must be a sequence of int"),
    (lambda: MLP(3, [4], 1, activation=nn.Tanh()), "activation must be a class or function that makes Module"),
    (lambda: LatentMLP(5, [], 2), "event_shape must be a sequence of int"),
    (lambda: Surrogate(hidden=7), "Surrogate: hidden must be"),
    (lambda: MovingAverage(decay="0.9"), "decay must be a number"),
    (
        lambda: LearnedBaseline(network=nn.Linear),
        r"the class Linear itself; build an object of it: Linear\(\.\.\.\)",
    ),
    (lambda: REINFORCE(MovingAverage), "baseline must be an object of class Baseline or None, got the class Moving"),
    (lambda: REINFORCE(lambda cost: cost), "got the function <lambda>"),
    (lambda: RELAX(surrogate=lambda z: z), "surrogate must be an object of class Module or None"),
    (lambda: RELAX(num_samples="2"), "num_samples must be an integer"),
    (lambda: StochasticBackprop(form="series", order="2"), "order must be an integer or None"),
    (lambda: DiscreteLatentModel(REINFORCE, SHAPE), "estimator must be an object of class GradientEstimator"),
    (lambda: DiscreteLatentModel(REINFORCE(), SHAPE, num_latents=5), "num_latents must be a sequence of int"),
    (lambda: DiscreteLatentModel(REINFORCE(), 64), "image_shape must be a sequence of int, got 64"),
    (lambda: ContinuousLatentModel(REINFORCE(), SHAPE, hidden=7), "hidden must be a sequence of int"),
    (lambda: BayesianLogisticRegression(REINFORCE(), "5"), "num_features must be an integer"),
    (lambda: ToyModel(REINFORCE(), target=None), "target must be a number, got None"),
]


@pytest.mark.parametrize(("build", "message"), REFUSED)
def test_other_types_are_refused_with_the_name_of_the_argument(build, message):
    with pytest.raises(TypeError, match=message):
        build()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Enumeration(limit=float("inf")), "Enumeration needs an integer limit .* got inf"),
        (lambda: DiscreteLatentModel(REINFORCE(), SHAPE, test_samples=1.5), "integer test_samples .* got 1.5"),
        (lambda: REBAR(learn_eta="no"), r"learn_eta must be True or False, got 'no' \(str\)"),
        (lambda: REINFORCE(num_samples=True), "integer num_samples .* got True"),
    ],
)
def test_numbers_that_are_no_integers_and_words_for_truth_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_what_can_stand_for_the_annotated_type_is_taken():
    MLP(np.int64(3), (4,), 1)
    MLP(3, np.array([4, 4]), 1, activation=lambda: nn.ReLU())
    REBAR(temperature=1, eta=np.float32(0.5))
    REBAR(temperature=torch.tensor(0.5))
    DiscreteLatentModel(REINFORCE(), list(SHAPE), data_mean=[0.5] * 64, num_latents=[3])


class Plugin(CheckedArguments):
    def __init__(self, size: "int", name: "Undefined", cost: Callable[[int], int], more: Sequence = ()):  # noqa: F821
        self.size = size


def test_annotations_that_cannot_be_resolved_are_not_checked():
    assert Plugin("three", name=3, cost=None).size == "three"
