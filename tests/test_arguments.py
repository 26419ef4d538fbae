"""Constructor arguments of a wrong type, or numbers that are none, are refused in words by every kind of class."""

import math

import pytest
import torch

from lightning_estimators.callbacks import GradientVariance, Reconstructions
from lightning_estimators.estimators import Enumeration
from lightning_estimators.modules import ToyModel
from lightning_estimators.objectives import (
    BernoulliLinear,
    ExponentialCost,
    FirstLayerLinear,
    GaussianLinear,
    Scaled,
    Separable,
    SquaredCost,
    Sum,
)

WEIGHT, BIAS, TARGET = torch.randn(10, 5), torch.zeros(10), torch.rand(10)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SquaredCost("1"), r"SquaredCost: target must be a number.*'1' \(str\)"),
        (lambda: Scaled(5, 1.0), "Scaled: f must be a class or function"),
        (lambda: Sum(3), "Sum: terms must be a sequence"),
        (lambda: Separable(4), "Separable: g must be a class or function"),
        (lambda: BernoulliLinear([1.0], BIAS, TARGET), "BernoulliLinear: weight must be an object of class Tensor"),
        (lambda: GaussianLinear(WEIGHT, BIAS, TARGET, "1"), "GaussianLinear: scale must be a number"),
        (lambda: FirstLayerLinear(WEIGHT, BIAS, 3), "FirstLayerLinear: rest must be a class or function"),
        (lambda: GradientVariance(prefix=3), "GradientVariance: prefix must be a str"),
        (lambda: Reconstructions(num_images="64"), "Reconstructions: num_images must be an integer"),
    ],
)
def test_wrong_types_are_refused(build, message):
    with pytest.raises(TypeError, match=message):
        build()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("build", "name"),
    [
        (SquaredCost, "target"),
        (ExponentialCost, "rate"),
        (lambda number: Scaled(torch.sum, number), "factor"),
        (lambda number: GaussianLinear(WEIGHT, BIAS, TARGET, number), "scale"),
        (lambda number: ToyModel(Enumeration(), target=number), "target"),
    ],
)
def test_numbers_that_are_not_finite_are_refused(build, name, number):
    with pytest.raises(ValueError, match=rf"(finite {name}|{name}, finite too), got -?(nan|inf)"):
        build(number)
