"""What the base class gives to plug-ins: gradients of f, samples that are combined otherwise, other objectives."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent

from lightning_estimators.baselines import NoBaseline
from lightning_estimators.distributions import distribution_parameters, sample
from lightning_estimators.estimators import REBAR, REINFORCE, Estimate, StochasticBackprop, value_and_gradient
from lightning_estimators.objectives import CallableObjective

F64 = torch.float64


def bernoulli(*shape):
    logits = torch.linspace(-1, 1, math.prod(shape), dtype=F64).reshape(shape).requires_grad_()
    return Independent(Bernoulli(logits=logits), 1), logits


def test_value_and_gradient_leave_the_value_attached_to_the_decoder():
    scale = torch.tensor(3.0, dtype=F64, requires_grad=True)
    z = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=F64)
    f = CallableObjective(lambda z: scale * (z - 0.25).square().sum(-1))
    value, gradient = value_and_gradient(REINFORCE(), f, z)
    torch.testing.assert_close(gradient, 2 * scale.detach() * (z - 0.25))
    assert not gradient.requires_grad
    assert not z.requires_grad
    (of_scale,) = torch.autograd.grad(value.sum(), scale)
    torch.testing.assert_close(of_scale, (z - 0.25).square().sum())


def test_the_gradient_of_f_can_be_differentiated_again():
    power = torch.tensor(3.0, dtype=F64, requires_grad=True)
    f = CallableObjective(lambda z: (z**power).sum(-1))
    _, gradient = value_and_gradient(REINFORCE(), f, torch.tensor([[2.0]], dtype=F64), create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), power)
    torch.testing.assert_close(second.item(), 2.0**2 * (1 + 3 * math.log(2)))


def test_an_f_with_an_estimator_inside_has_a_gradient():
    def f(z):
        inner = Independent(Bernoulli(logits=3 * z), 1)
        return StochasticBackprop()(inner, lambda b: b.sum(-1))

    z = torch.tensor([[0.5, -0.5]], dtype=F64)
    _, gradient = value_and_gradient(REINFORCE(), CallableObjective(f), z)
    p = torch.sigmoid(3 * z)
    torch.testing.assert_close(gradient, 3 * p * (1 - p))


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("f", [lambda z: z.detach().sum(-1), lambda z: z.new_ones(len(z))])
def test_an_f_without_gradient_is_refused(f, grad):
    scale = torch.ones((), requires_grad=True)
    z = torch.ones(4, 2)
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=r"^REBAR differentiates f, but.*no gradient"):
        value_and_gradient(REBAR(), CallableObjective(lambda z: scale * f(z)), z)


class AveragesItself(REINFORCE):
    """Combines samples, and its loss, before it answers."""

    def estimate(self, q, leaves, f, context):
        of_samples = super().estimate(q, leaves, f, context)
        gradients = {name: g.mean(0) for name, g in of_samples.gradients.items()}
        return Estimate(of_samples.value.mean(0), gradients)


@pytest.mark.parametrize("samples", [1, 3])
def test_a_plug_in_may_combine_the_samples_itself(samples):
    found = []
    for kind in (REINFORCE, AveragesItself):
        q, logits = bernoulli(2, 2)
        torch.manual_seed(0)
        value = kind(num_samples=samples)(q, lambda z: z.square().sum(-1))
        found.append((value, *torch.autograd.grad(value.sum(), logits)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


class Scaled(REBAR):
    """Its surrogate loss is that of the combined gradient."""

    def estimate(self, q, leaves, f, context):
        estimate = super().estimate(q, leaves, f, context)
        return Estimate(estimate.value, estimate.gradients, estimate.surrogate_loss.mean(0) / self.num_samples)


def test_a_surrogate_loss_of_the_combined_gradient_is_taken_as_it_is():
    found = []
    for kind in (REBAR, Scaled):
        q, _ = bernoulli(2, 2)
        torch.manual_seed(0)
        estimator = kind(num_samples=3)
        estimator(q, lambda z: (z - 0.3).pow(3).sum(-1)).sum().backward()
        found.append([estimator.last_surrogate_loss, *(p.grad for p in estimator.parameters())])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("what", ["value", "gradient", "surrogate_loss"])
def test_a_wrong_shape_is_refused_by_name(what):
    class Wrong(REINFORCE):
        def estimate(self, q, leaves, f, context):
            value = f(sample(q))
            right = {"value": value, "gradient": leaves["logits"].detach(), "surrogate_loss": value.detach()}
            right[what] = right[what][..., :1]
            return Estimate(right["value"], {"logits": right["gradient"]}, right["surrogate_loss"])

    q, _ = bernoulli(2, 3)
    with pytest.raises(ValueError, match=rf"Wrong\.estimate must return a {what}.*of shape \(5, 2.*got \(5, "):
        Wrong(num_samples=5)(q, lambda z: z.sum(-1))


class ImportanceWeightedBound(REINFORCE):
    """-log (1/K) Σ exp(-f_k), by the score function of all samples at once."""

    def combine(self, costs):
        return -(-costs).logsumexp(0) + math.log(len(costs))

    def estimate(self, q, leaves, f, context):
        z = sample(q)
        value = f(z)
        bound = self.combine(value.detach())
        gradient = bound.unsqueeze(-1) * (z - q.mean.detach()).sum(0)
        return Estimate(value, {"logits": gradient})


def test_another_objective_than_the_mean_of_the_samples():
    """Value, gradient in q and gradient in f's parameters, against the sum over all pairs of samples."""
    scale = torch.tensor(1.3, dtype=F64, requires_grad=True)

    def f(z):
        return scale * (z[..., 0] - 2 * z[..., 1] + 3 * z[..., 0] * z[..., 1])

    estimator = ImportanceWeightedBound(NoBaseline(), num_samples=2)
    q, logits = bernoulli(1, 2)
    support = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=F64)] * 2).unsqueeze(1)
    weights, costs = q.log_prob(support).exp(), f(support)
    pairs = estimator.combine(torch.stack([costs.repeat_interleave(4, 0), costs.repeat(4, 1)]))
    exact = (weights.repeat_interleave(4, 0) * weights.repeat(4, 1) * pairs).sum()
    expected = [exact, *torch.autograd.grad(exact, [logits, scale])]

    torch.manual_seed(0)
    n = 200_000
    parameter = distribution_parameters(q)["logits"].detach().expand(n, 2).clone().requires_grad_()
    scales = scale.detach().expand(n).clone().requires_grad_()

    def per_element(z):
        return scales * (z[..., 0] - 2 * z[..., 1] + 3 * z[..., 0] * z[..., 1])

    value = estimator(Independent(Bernoulli(logits=parameter), 1), per_element)
    draws = [value.detach(), *torch.autograd.grad(value.sum(), [parameter, scales])]
    for truth, drawn in zip(expected, draws, strict=True):
        z = (drawn.mean(0) - truth.detach()).abs() / (drawn.std(0) / math.sqrt(n))
        assert z.max() < 4.5, f"{z.max():.1f} standard errors"


def test_what_is_learned_stays_with_the_module():
    """A plug-in with a network of its own and no surrogate loss leaves it alone."""

    class Idle(REINFORCE):
        def __init__(self):
            super().__init__(NoBaseline())
            self.network = nn.Linear(1, 1)

    estimator, (q, _) = Idle(), bernoulli(2, 2)
    estimator(q, lambda z: z.sum(-1)).sum().backward()
    assert estimator.network.weight.grad is None
