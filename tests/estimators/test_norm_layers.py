"""BatchNorm inside a cost: its running statistics are those of the samples, whatever else is evaluated."""

import functools
import warnings

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, OneHotCategorical

from lightning_estimators.estimators import (
    CARMS,
    REBAR,
    REINFORCE,
    RELAX,
    Concrete,
    Enumeration,
    MuProp,
    RelaxedREBAR,
    StochasticBackprop,
    UnorderedSet,
)
from lightning_estimators.objectives import FirstLayerLinear

from .cases import small_surrogate

F64 = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore:f contains BatchNorm")

ESTIMATORS = {
    "RELAX": lambda: RELAX(small_surrogate()),
    "REBAR": REBAR,
    "RelaxedREBAR": lambda: RelaxedREBAR(small_surrogate()),
    "MuProp": MuProp,
    "StochasticBackprop": StochasticBackprop,
    "StochasticBackprop/sampled": lambda: StochasticBackprop(num_changes=2),
    "Enumeration": Enumeration,
    "Concrete": Concrete,
    "UnorderedSet": UnorderedSet,
}


class Cost:
    """A cost with BatchNorm; `samples` keeps the points at which the layer has changed its own statistics."""

    def __init__(self, norm, features=3):
        self.norm, self.features, self.weight = norm, features, nn.Parameter(torch.ones(features, dtype=F64))
        self.counter, self.samples = norm.num_batches_tracked, []

    def __call__(self, z):
        before, rows = int(self.counter), z.reshape(-1, self.features)
        out = (self.norm(rows) * self.weight).sum(-1).sigmoid()
        if int(self.counter) > before:
            self.samples.append(rows.detach())
        return out.reshape(z.shape[: z.ndim - (1 if self.features == 3 else 2)])


def batch_norm(**settings):
    return nn.BatchNorm1d(settings.pop("features", 3), dtype=F64, **settings)


def folded(norm, z):
    return norm(z.reshape(-1, 3)).reshape(z.shape).sum(-1).sigmoid()


def bernoulli(batch=64):
    return Independent(Bernoulli(logits=torch.linspace(-4, -1, 3, dtype=F64).repeat(batch, 1).requires_grad_()), 1)


def statistics(norm):
    return [b.clone() for b in norm.buffers()]


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_running_statistics_are_those_that_plain_torch_keeps_of_the_samples(name, momentum):
    torch.manual_seed(0)
    cost, q = Cost(batch_norm(momentum=momentum)), bernoulli()
    estimator = ESTIMATORS[name]().double()
    for _ in range(3):
        estimator(q, cost).mean().backward()
    plain = batch_norm(momentum=momentum)
    assert len(cost.samples) == 3
    for z in cost.samples:
        assert len(z) == 64 * estimator.num_samples
        assert bool(((z == 0) | (z == 1)).all())
        plain(z)
    for found, expected in zip(statistics(cost.norm), statistics(plain), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["StochasticBackprop", "StochasticBackprop/sampled", "Enumeration", "MuProp"])
def test_running_statistics_are_those_of_reinforce_at_the_same_samples(name):
    """Those are estimators that draw the latent variables first, as REINFORCE does."""
    norms = []
    for make in (REINFORCE, ESTIMATORS[name]):
        norms.append(batch_norm())
        torch.manual_seed(0)
        make().double()(bernoulli(), Cost(norms[-1])).mean().backward()
    for found, expected in zip(statistics(norms[1]), statistics(norms[0]), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_categorical_variables_and_several_samples():
    logits = torch.tensor([-2.0, 0.0, 1.0], dtype=F64).repeat(64, 2, 1).requires_grad_()
    for estimator in (StochasticBackprop(), CARMS(num_samples=4), REBAR(num_samples=2)):
        torch.manual_seed(0)
        cost = Cost(batch_norm(features=6, momentum=None), features=6)
        estimator.double()(Independent(OneHotCategorical(logits=logits), 1), cost).sum().backward()
        (z,) = cost.samples
        assert z.shape == (64 * estimator.num_samples, 6)
        torch.testing.assert_close(cost.norm.running_mean, z.mean(0))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_layer_that_gets_its_size_from_the_first_call_sees_no_other_points(name):
    norms = [nn.LazyBatchNorm1d(dtype=F64), batch_norm()]
    for norm in norms:
        torch.manual_seed(0)
        estimator, q = ESTIMATORS[name]().double(), bernoulli()
        for _ in range(2):
            estimator(
                q, lambda z, norm=norm: norm(z.reshape(-1, 3)).reshape(z.shape).sum(-1).sigmoid()
            ).sum().backward()
    for found, expected in zip(statistics(norms[0]), statistics(norms[1]), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("inner", ["Enumeration", "REBAR", "StochasticBackprop", "Concrete"])
@pytest.mark.parametrize("outer", ["Enumeration", "REBAR", "StochasticBackprop", "Concrete", "RELAX"])
def test_nested_estimators_show_every_layer_one_batch(outer, inner):
    torch.manual_seed(0)
    norms = [batch_norm(momentum=None), batch_norm(momentum=None)]
    estimators = [ESTIMATORS[outer]().double(), ESTIMATORS[inner]().double()]

    def cost(z):
        below = Independent(Bernoulli(logits=4 * z - 2), 1)
        return folded(norms[0], z) + estimators[1](below, lambda b: folded(norms[1], b) * (1 + z.sum(-1)))

    for calls in (1, 2):
        estimators[0](bernoulli(16), cost).mean().backward()
        assert [int(norm.num_batches_tracked) for norm in norms] == [calls, calls]
    for norm in norms:  # means of that many zeros and ones
        seen = norm.running_mean * 32
        torch.testing.assert_close(seen, seen.round())


def test_an_objective_with_structure_is_watched_too():
    torch.manual_seed(0)
    norm = batch_norm()
    f = FirstLayerLinear(torch.eye(3, dtype=F64), None, lambda a: norm(a.reshape(-1, 3)).reshape(a.shape).sum(-1))
    z = torch.ones(4, 3, dtype=F64)
    f.coordinate_change(z, 1 - z)
    f.coordinate_derivative(z)
    f.coordinate_slope(z, 1 - z)
    f.is_differentiable(z)
    assert int(norm.num_batches_tracked) == 0
    StochasticBackprop()(bernoulli(), f).sum().backward()
    assert int(norm.num_batches_tracked) == 1


@pytest.mark.parametrize("how", ["module", "in place", "function"])
def test_a_compiled_cost_is_watched_too(how):
    norm = batch_norm()
    if how == "module":
        layer = torch.compile(nn.Sequential(norm), backend="eager")
    elif how == "in place":
        layer = nn.Sequential(norm)
        layer.compile(backend="eager")
    else:
        layer = torch.compile(lambda z: norm(z), backend="eager")
    layer(torch.zeros(64, 3, dtype=F64))  # compiled before an estimator is around it
    cost = functools.partial(folded, layer)
    estimator = REBAR().double()
    for _ in range(2):
        estimator(bernoulli(), cost).mean().backward()
    assert int(norm.num_batches_tracked) == 3


def test_layers_in_evaluation_mode_do_not_matter_and_those_that_keep_nothing_couple_the_batch():
    norm = batch_norm().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        REBAR().double()(bernoulli(), functools.partial(folded, norm))
    assert int(norm.num_batches_tracked) == 0
    with pytest.raises(ValueError, match="couples the batch"):
        REBAR().double()(bernoulli(), functools.partial(folded, batch_norm(track_running_stats=False)))
