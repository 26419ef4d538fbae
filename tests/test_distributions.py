"""What estimators know of distributions."""

import pytest
import torch
from torch.distributions import (
    Bernoulli,
    Categorical,
    Gamma,
    Independent,
    MixtureSameFamily,
    Normal,
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
)

from lightning_estimators.distributions import base_distribution, distribution_parameters, rebuild, sample
from lightning_estimators.noise import CommonNoise
from lightning_estimators.testing import BOUND


def test_base_distribution_looks_through_every_independent():
    base = Bernoulli(logits=torch.zeros(2, 3))
    assert base_distribution(Independent(Independent(base, 1), 1)) is base
    assert base_distribution(base) is base


def test_parameters_are_logits_whichever_was_given_and_the_same_objects_each_time():
    probs = torch.full((2, 3), 0.3, requires_grad=True)
    q = Independent(Bernoulli(probs=probs), 1)
    (name,), (logits,) = zip(*distribution_parameters(q).items(), strict=True)
    assert name == "logits"
    assert torch.allclose(logits, torch.logit(probs))
    assert distribution_parameters(q)["logits"] is logits
    assert torch.autograd.grad(logits.sum(), probs)[0].allclose(torch.tensor(1 / 0.21))


@pytest.mark.parametrize(
    ("q", "names"),
    [(Normal(torch.zeros(2), torch.ones(2)), {"loc", "scale"}), (Gamma(torch.ones(2), 1.0), {"concentration", "rate"})],
)
def test_parameters_of_continuous_families(q, names):
    assert set(distribution_parameters(q)) == names


@pytest.mark.parametrize(
    "q",
    [
        Bernoulli(logits=torch.randn(2, 3)),
        Independent(Bernoulli(probs=torch.rand(2, 3)), 1),
        Independent(OneHotCategorical(logits=torch.randn(2, 3, 4)), 1),
        OneHotCategoricalStraightThrough(logits=torch.randn(2, 3)),
        Independent(Normal(torch.zeros(2, 3), torch.ones(2, 3)), 2),
    ],
)
def test_rebuild_adds_axes_on_the_left_and_keeps_family_and_event(q):
    wide = rebuild(q, {name: p.expand(5, *p.shape) for name, p in distribution_parameters(q).items()})
    assert wide.batch_shape == (5, *q.batch_shape)
    assert wide.event_shape == q.event_shape
    assert type(base_distribution(wide)) is type(base_distribution(q))
    assert torch.allclose(wide.mean, q.mean.expand(wide.mean.shape))


def test_rebuild_names_what_it_cannot_rebuild():
    mixture = MixtureSameFamily(Categorical(logits=torch.zeros(2)), Normal(torch.zeros(2), torch.ones(2)))
    with pytest.raises(TypeError, match="MixtureSameFamily"):
        rebuild(mixture, {"logits": torch.zeros(3, 2)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical])
def test_samples_have_the_right_means_and_no_gradient(family, dtype):
    logits = torch.tensor([[-2.0, 0.3, 1.5], [0.0, -1.0, 4.0]], dtype=dtype, requires_grad=True)
    n = 200_000
    q = Independent(family(logits=logits.expand(n, 2, 3)), 1)
    z = sample(q)
    assert z.dtype == dtype
    assert not z.requires_grad
    assert z.shape == (n, 2, 3)
    p = torch.sigmoid(logits) if family is Bernoulli else torch.softmax(logits, -1)
    z_score = (z.double().mean(0) - p) / (p * (1 - p) / n).sqrt()
    assert z_score.abs().max() < BOUND
    assert set(z.unique().tolist()) == {0.0, 1.0}
    if family is OneHotCategorical:
        assert (z.sum(-1) == 1).all()
    # Variables of one event are independent.
    assert abs(torch.corrcoef(z[..., 0].T)[0, 1]) < BOUND / n**0.5


def test_saturated_samples_are_what_they_must_be():
    logits = torch.tensor([50.0, -50.0]).expand(10_000, 2)
    assert torch.equal(sample(Bernoulli(logits=logits)), (logits > 0).float())
    assert torch.equal(sample(OneHotCategorical(logits=logits)), (logits > 0).float())


def test_categories_do_not_run_out_of_range_where_probabilities_sum_to_less_than_one(monkeypatch):
    top = torch.tensor(1.0).nextafter(torch.tensor(0.0)).item()
    monkeypatch.setattr(
        "lightning_estimators.distributions.sampling.uniform",
        lambda batch, event, **_: torch.full((*batch, *event), top),
    )
    z = sample(OneHotCategorical(logits=torch.randn(1000, 7)))
    assert torch.equal(z.argmax(-1), torch.full((1000,), 6))


@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical])
def test_shared_noise_gives_equal_samples_where_parameters_are_equal(family):
    logits = torch.randn(50, 4, 3)
    others = torch.stack([logits, torch.randn(50, 4, 3)])
    noise = CommonNoise(logits.device)
    q = Independent(family(logits=logits), 1)
    once = sample(q)
    with noise.replay(new_axis=len(q.batch_shape)):
        both = sample(Independent(family(logits=others), 1))
    assert torch.equal(both[0], once)
    assert not torch.equal(both[1], once)


def test_other_families_draw_their_own_way_without_gradient():
    loc = torch.zeros(1000, requires_grad=True)
    z = sample(Normal(loc, 1.0))
    assert z.shape == (1000,)
    assert not z.requires_grad
