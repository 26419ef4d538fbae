"""What a cost may answer, what it may do to z, and how errors inside it are told."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Gamma, Independent, Laplace, OneHotCategorical

from lightning_estimators.baselines import LeaveOneOut
from lightning_estimators.estimators import REBAR, REINFORCE, RELAX, Concrete, Enumeration, StochasticBackprop
from lightning_estimators.networks import Surrogate
from lightning_estimators.objectives import CallableObjective, chunks, per_example

ESTIMATORS = [REINFORCE, REBAR, Concrete, Enumeration, StochasticBackprop, lambda: RELAX(Surrogate([3]))]


def bernoulli(*shape, **options):
    return Independent(Bernoulli(logits=torch.zeros(*shape, requires_grad=True), **options), 1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (3.0, r"shape \(1, 4\) for z of shape \(1, 4, 3\), got an object of class float \(3.0\)"),
        (3, "class int"),
        (None, r"class NoneType \(None\)"),
        ([1.0] * 4, "class list"),
        ((torch.zeros(1, 4), None), "class tuple"),
        ({"loss": torch.zeros(1, 4)}, "class dict"),
        (torch.zeros(1, 4, dtype=torch.complex64), "real numbers, got torch.complex64"),
    ],
    ids=repr,
)
def test_what_is_no_tensor_of_costs_is_refused(answer, message):
    with pytest.raises(TypeError, match=message):
        REINFORCE()(bernoulli(4, 3), lambda z: answer)


@pytest.mark.parametrize("answer", [torch.zeros(4), torch.zeros(1, 4, 3), np.zeros(4), torch.zeros(())], ids=repr)
def test_tensors_and_arrays_of_another_shape_are_refused(answer):
    with pytest.raises(ValueError, match=r"for z of shape \(1, 4, 3\) expected \(1, 4\), got"):
        REINFORCE()(bernoulli(4, 3), lambda z: answer)


def twice(z):
    return z.mul_(2).sum(-1)


def assigns(z):
    z[..., 0] = 1
    return z.sum(-1)


@pytest.mark.parametrize("f", [twice, assigns])
@pytest.mark.parametrize("make", ESTIMATORS)
def test_a_cost_that_changes_z_in_place_is_refused(make, f):
    with pytest.raises((ValueError, RuntimeError), match=r"in place.*z = z\.clone\(\)"):
        make()(bernoulli(4, 3), f)


def test_a_cost_that_changes_z_in_place_is_refused_where_nothing_is_recorded():
    with torch.no_grad(), pytest.raises(ValueError, match=r"z = z\.clone\(\)"):
        REINFORCE()(bernoulli(4, 3), twice)
    with torch.inference_mode():
        REINFORCE()(bernoulli(4, 3), lambda z: z.sum(-1))


def through_numpy(z):
    array = z.detach().numpy()
    array *= 2
    return z.sum(-1)


def through_data(z):
    z.data.clamp_(0, 0.5)
    return z.sum(-1)


@pytest.mark.parametrize("f", [through_numpy, through_data])
@pytest.mark.parametrize("make", ESTIMATORS)
def test_a_change_in_place_that_torch_does_not_count_is_found_in_the_first_training_step(make, f):
    with pytest.raises(ValueError, match=r"in place.*a \*= 2 for a = z\.numpy\(\).*z = z\.clone\(\)"):
        make()(bernoulli(4, 3), f)


SIMULATORS = [lambda z: np.square(z.numpy()).sum(-1), lambda z: torch.as_tensor(np.square(z.numpy()).sum(-1))]


@pytest.mark.parametrize("f", SIMULATORS)
@pytest.mark.parametrize(
    ("build", "start", "exact"),
    [
        (lambda a: Bernoulli(logits=a), 0.0, 0.25),
        (lambda a: Laplace(a, torch.ones_like(a)), 0.5, 1.0),
        (lambda a: Gamma(a, torch.ones_like(a)), 2.0, 5.0),
    ],
)
@pytest.mark.parametrize("make", [lambda: REINFORCE(LeaveOneOut(), num_samples=2), StochasticBackprop])
def test_costs_in_numpy_work_for_black_box_estimators(make, build, start, exact, f):
    a = torch.full((4000, 1), start, dtype=torch.float64, requires_grad=True)
    make()(Independent(build(a), 1), f).sum().backward()
    error = a.grad.std().item() / 4000**0.5
    assert abs(a.grad.mean().item() - exact) < 5.5 * error + 1e-9


@pytest.mark.parametrize("make", [REBAR, Concrete])
def test_costs_in_numpy_are_refused_by_estimators_that_differentiate_them(make):
    with pytest.raises(RuntimeError, match=r"cost in NumPy needs.*REINFORCE, RELAX"):
        make()(bernoulli(4, 3), SIMULATORS[0])


@pytest.mark.parametrize("make", [REINFORCE, REBAR, Enumeration, StochasticBackprop])
def test_layers_that_take_one_leading_axis_are_told_of_the_sample_axis(make):
    q = Independent(Bernoulli(logits=torch.zeros(2, 1, 2, 2)), 3)
    decoder = nn.Conv2d(1, 1, 3, padding=1)
    with pytest.raises(RuntimeError, match=r"inside the cost f for z of shape .*sample axis.*per_example") as caught:
        make()(q, lambda z: decoder(z).square().sum((-1, -2, -3)))
    assert str(caught.value).count("inside the cost f") == 1


def test_errors_inside_nested_estimators_are_explained_once_and_refusals_are_left_alone():
    def broken(b):
        return REINFORCE()(Independent(Bernoulli(logits=b), 1), lambda z: z @ torch.zeros(7, 1))

    with pytest.raises(RuntimeError) as caught:
        REINFORCE()(bernoulli(4, 3), broken)
    assert str(caught.value).count("inside the cost f") == 1
    with pytest.raises(TypeError) as caught:
        REINFORCE()(bernoulli(4, 3), lambda b: REBAR()(Laplace(b, torch.ones_like(b)), lambda z: z))
    assert "inside the cost f" not in str(caught.value)


def test_the_kind_of_an_error_inside_the_cost_stays():
    def missing(z):
        return {}["reward"]

    with pytest.raises(KeyError, match="reward"):
        REINFORCE()(bernoulli(4, 3), missing)


@pytest.mark.parametrize("make", [REBAR, Concrete])
@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical])
def test_validation_of_relaxed_samples_is_explained_without_a_dump(make, family):
    logits = torch.zeros(50, 2, 3, requires_grad=True)
    q = Independent(family(logits=logits), 2 if family is Bernoulli else 1)
    with pytest.raises(ValueError, match=r"relaxed.*validate_args=False") as caught:
        make()(q, q.log_prob)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("make", [*ESTIMATORS, lambda: REINFORCE(num_samples=3)])
def test_per_example_gives_convolutions_and_losses_the_axes_they_take(make):
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 2), nn.Flatten(1))
    labels = torch.tensor([0, 1, 1])
    logits = torch.zeros(3, 4, requires_grad=True)
    q = Independent(Bernoulli(logits=logits), 1)

    def folded(z, y):
        return nn.functional.cross_entropy(decoder(z), y, reduction="none")

    def plain(z):
        rows = torch.stack([folded(row, labels) for row in z.reshape(-1, 3, 4)])
        return rows.reshape(z.shape[:-1])

    estimator = make()
    estimator.prepare(q)
    torch.manual_seed(1)
    expected = estimator(q, plain)
    torch.manual_seed(1)
    found = estimator(q, per_example(folded, labels))
    if not isinstance(estimator, REINFORCE):  # whose moving average has moved
        gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (expected, found)]
        torch.testing.assert_close(*gradients)
    torch.testing.assert_close(found, expected)


def test_per_example_takes_any_event_and_batch():
    f = per_example(lambda z, y: z.sum((-1, -2)) - y, torch.arange(6.0).reshape(2, 3), event_dim=2, batch_dim=2)
    z = torch.rand(5, 2, 3, 4, 2)
    torch.testing.assert_close(f(z), z.sum((-1, -2)) - torch.arange(6.0).reshape(2, 3))
    assert per_example(lambda z: z.sum(-1))(torch.ones(0, 3)).shape == (0,)


def test_per_example_refuses_what_does_not_belong_to_the_batch():
    with pytest.raises(ValueError, match=r"those of the batch, \(4,\), got data of shape \(5,\)"):
        per_example(lambda z, y: z.sum(-1), torch.zeros(5))(torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match=r'shape \(8,\), got \(\). .*reduction="none"'):
        per_example(lambda z: z.mean())(torch.zeros(2, 4, 3))


class Clock:
    def __init__(self, seconds):
        self.seconds, self.now = seconds, 0.0

    def monotonic(self):
        self.now += self.seconds
        return self.now


def test_a_loop_that_would_take_hours_is_refused_after_its_first_chunks(monkeypatch):
    f = CallableObjective(lambda z: z.sum(-1))
    f.chunk_bytes = 1
    z = torch.zeros(1, 1000)
    monkeypatch.setattr(chunks, "time", Clock(2.0))
    with pytest.raises(ValueError, match=r"1000 points, .* about 33 minutes .*REINFORCE or REBAR"):
        f.coordinate_change(z, 1 - z)
    with pytest.raises(ValueError, match="1000 points"):
        f.coordinate_slope(z, 1 - z)
    monkeypatch.setattr(chunks, "time", Clock(0.1))
    with pytest.warns(UserWarning, match="about 2 minutes"):
        f.coordinate_change(z, 1 - z)
