"""Constructor arguments of a wrong type, or numbers that are none, are refused in words by every kind of class."""

import math

import pytest
import torch
from torch.distributions import Bernoulli

from lightning_estimators.callbacks import GradientVariance, Reconstructions, SaveOnSigterm
from lightning_estimators.datamodules import MNIST
from lightning_estimators.estimators import REINFORCE, Enumeration
from lightning_estimators.modules import ToyModel
from lightning_estimators.networks import MLP
from lightning_estimators.objectives import (
    BernoulliLinear,
    CallableObjective,
    ExponentialCost,
    FirstLayerLinear,
    GaussianLinear,
    Scaled,
    Separable,
    SquaredCost,
    Sum,
)
from lightning_estimators.policies import Critic
from lightning_estimators.schedules import ConstantSchedule

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
        (lambda: Critic(torch.nn.Linear), "Critic: network must be an object of class Module, got the class Linear"),
        (lambda: SaveOnSigterm(dirpath=3), "SaveOnSigterm: dirpath must be a str"),
        (lambda: CallableObjective(None), "CallableObjective: f must be a class or function.*, got None"),
        (lambda: MLP(3, {4: 5}, 1), "MLP: hidden must be a sequence of int, got {4: 5}"),
        (lambda: MLP(3, {4, 5}, 1), "MLP: hidden must be a sequence of int, got {4, 5}"),
        (lambda: ConstantSchedule(10**400), r"ConstantSchedule: constant must be a number, got 10+\.\.\."),
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


@pytest.mark.parametrize("value", ["false", 1, None])
def test_what_is_neither_true_nor_false_does_not_start_a_download(value):
    with pytest.raises(ValueError, match="download must be True or False"):
        MNIST(download=value)


def test_integers_that_torch_cannot_hold_are_refused():
    with pytest.raises(ValueError, match=r"integer num_samples .* got 10+\.\.\."):
        REINFORCE(num_samples=10**400)
    with pytest.raises(ValueError, match="got a number too long to write down"):
        REINFORCE(num_samples=10**5000)


@pytest.mark.parametrize(
    "build",
    [
        lambda: CallableObjective(torch.sum, event_dim=-1),
        lambda: SquaredCost(0.0, event_dim=-1),
        lambda: ExponentialCost(0.0, event_dim=-1),
        lambda: Separable(torch.sum, event_dim=-1),
        lambda: FirstLayerLinear(WEIGHT, BIAS, torch.sum, event_dim=-1),
    ],
)
def test_events_have_no_negative_number_of_axes(build):
    with pytest.raises(ValueError, match="needs an event_dim of at least 0, got -1"):
        build()


def test_costs_on_another_device_are_refused():
    q = Bernoulli(logits=torch.zeros(4, requires_grad=True))
    with pytest.raises(ValueError, match=r"on cpu, the device of z, got one on meta.*\.to\(z\.device\)"):
        REINFORCE()(q, lambda z: z.to("meta"))
