"""VIMCO against sums over all tuples of samples; what may be nested in it; the objectives that models give it."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Independent, LogNormal, Normal, OneHotCategorical

from lightning_estimators.estimators import (
    REINFORCE,
    VIMCO,
    Enumeration,
    GeneralizedReparameterization,
    Pathwise,
    StochasticBackprop,
)
from lightning_estimators.modules import DiscreteLatentModel
from lightning_estimators.testing import Report
from lightning_estimators.testing.gradients import check_bias

F64 = torch.float64


def f(z, scale):
    weights = torch.linspace(-1, 2, z.flatten(-2).shape[-1], dtype=F64).reshape(z.shape[-2:])
    return scale * (torch.sin(3 * z * weights).sum((-1, -2)) + (z * weights).sum((-1, -2)).square())


@pytest.mark.parametrize("samples", [2, 3])
@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical])
def test_the_mean_over_all_tuples_is_the_gradient_of_the_bound(monkeypatch, family, samples):
    """No Monte Carlo: every tuple of samples once, weighted by its probability."""
    logits = torch.tensor([[0.4, -1.0, 0.9]], dtype=F64, requires_grad=True)
    scale = torch.tensor(1.3, dtype=F64, requires_grad=True)
    q = Independent(family(logits=logits), 1 if family is OneHotCategorical else 2)
    support = torch.eye(3, dtype=F64).unsqueeze(1)
    if family is Bernoulli:
        support = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=F64)] * 3).unsqueeze(1)
    index = torch.cartesian_prod(*[torch.arange(len(support))] * samples).T
    tuples = support[index]  # (samples, number of tuples, 1, 3)
    weights = q.log_prob(support).exp()[index].prod(0)
    bound = -(-f(tuples, scale)).exp().mean(0).log()
    exact = torch.autograd.grad((weights * bound).sum(), [logits, scale])

    parameter = logits.detach().expand(len(weights), 1, 3).clone().requires_grad_()
    scales = scale.detach().expand(len(weights)).clone().requires_grad_()
    monkeypatch.setattr("lightning_estimators.estimators.vimco.sample", lambda q: tuples)
    estimator = VIMCO(num_samples=samples)
    estimator.allow_coupled_costs = True
    each = Independent(family(logits=parameter), 1 if family is OneHotCategorical else 2)
    value = estimator(each, lambda z: f(z, scales))
    torch.testing.assert_close(value, bound)
    found = torch.autograd.grad((weights.detach() * value).sum(), [parameter, scales])
    torch.testing.assert_close(found[0].sum(0), exact[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[1].sum(), exact[1], rtol=1e-9, atol=1e-9)


def test_the_signal_is_that_of_the_paper():
    costs = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
    found, log_weights = VIMCO(num_samples=4)._signal(costs), -costs
    for k in range(4):
        others = log_weights[[j for j in range(4) if j != k]]
        without = ((others.exp().sum(0) + others.mean(0).exp()) / 4).log()
        torch.testing.assert_close(found[k], -(log_weights.exp().mean(0).log() - without))


def test_a_sample_that_is_impossible_weighs_nothing():
    signal = VIMCO(num_samples=3)._signal(torch.tensor([[1.0], [math.inf], [2.0]], dtype=F64))
    assert signal.isfinite().all()
    logits = torch.zeros(64, 3, dtype=F64, requires_grad=True)
    value = VIMCO(num_samples=8)(OneHotCategorical(logits=logits), lambda z: torch.where(z[..., 0] > 0, math.inf, 1.0))
    assert value.isfinite().all()
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert gradient.isfinite().all()
    assert (gradient.mean(0)[0] > 0) & (gradient.mean(0)[1:] < 0).all()


def test_more_samples_have_a_tighter_bound():
    torch.manual_seed(0)
    q = Independent(Bernoulli(logits=torch.zeros(20_000, 2)), 1)
    with torch.no_grad():
        bounds = [VIMCO(num_samples=k)(q, lambda z: 3 * z.sum(-1)).mean().item() for k in (2, 5, 20)]
    assert bounds[0] > bounds[1] > bounds[2] > -2 * math.log((1 + math.exp(-3)) / 2)


def inside(estimator, family, outer):
    q = Independent(Bernoulli(logits=torch.zeros(3, 2, requires_grad=True)), 1)
    scale = torch.ones((), requires_grad=True)
    return outer(q, lambda z: estimator(family(z * scale), lambda c: c.square().sum(-1)))


BITS, REALS = (lambda x: Independent(Bernoulli(logits=x), 1)), (lambda x: Independent(Normal(x, 1.0), 1))


@pytest.mark.parametrize("estimator", [REINFORCE(), StochasticBackprop(), VIMCO(2)])
def test_an_estimate_inside_is_refused_and_works_around(estimator):
    with pytest.raises(ValueError, match=r"inside the cost of VIMCO.*Enumeration"):
        inside(estimator, BITS, VIMCO(2))
    if not isinstance(estimator, VIMCO):
        inside(VIMCO(2), BITS, estimator).sum().backward()
    with torch.no_grad():
        inside(estimator, BITS, VIMCO(2))


def test_what_is_exact_or_pathwise_may_be_inside():
    inside(Enumeration(), BITS, VIMCO(2)).sum().backward()
    inside(Pathwise(), REALS, VIMCO(2)).sum().backward()
    with pytest.raises(ValueError, match="GeneralizedReparameterization inside the cost of VIMCO"):
        inside(GeneralizedReparameterization(), lambda x: Independent(LogNormal(x, 1.0), 1), VIMCO(2))


@pytest.mark.parametrize("coupling", ["antithetic", "stratified"])
def test_its_samples_are_independent_and_at_least_two(coupling):
    estimator = VIMCO(2)
    with pytest.raises(ValueError, match=r"compares samples.*independent"):
        estimator.coupling = coupling
    with pytest.raises(ValueError, match="num_samples of at least 2, got 1"):
        VIMCO(1)
    VIMCO(3)(Categorical(logits=torch.zeros(2, 3, requires_grad=True)), lambda i: i.float()).sum().backward()


class OfTheMean(VIMCO):
    """Says that it minimises the bound, but has the gradient of the mean of the costs."""

    def _signal(self, costs):
        return (costs - costs.mean(0)) / (len(costs) - 1)


def test_the_conformance_suite_knows_the_gradient_of_the_bound():
    with pytest.raises(AssertionError, match=r"^bias: Bernoulli, one layer: .*logits"):
        check_bias(lambda: OfTheMean(2), Report())


SMALL = {"image_shape": (1, 2, 2), "data_mean": 0.5}


def test_latent_models_give_it_the_whole_bound_or_refuse():
    with pytest.raises(ValueError, match=r'VIMCO.*kl="sampled"'):
        DiscreteLatentModel(VIMCO(), num_latents=[3], **SMALL)
    with pytest.raises(ValueError, match=r"VIMCO.*one layer"):
        DiscreteLatentModel(VIMCO(), num_latents=[3, 2], kl="sampled", **SMALL)
    torch.manual_seed(0)
    model = DiscreteLatentModel(VIMCO(num_samples=50), num_latents=[3], kl="sampled", **SMALL)
    x = torch.bernoulli(torch.full((400, 1, 2, 2), 0.5))
    loss, bound = model.loss(x).mean().item(), model.bounds(x, 50)[1].mean().item()
    assert loss == pytest.approx(-bound, abs=0.02)
    model.loss(x).mean().backward()
