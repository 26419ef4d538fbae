"""The relaxation and its conditional: the right distributions, and always on the side of the hard sample."""

import pytest
import torch
from scipy import stats
from torch.distributions import Bernoulli, Independent, OneHotCategorical

from lightning_estimators.estimators.relaxation import relaxation_of, score
from lightning_estimators.testing import BOUND

N = 50_000
LOGITS = torch.tensor([-1.0, 0.2, 1.7], dtype=torch.float64)


def distribution(family, logits):
    return Independent(family(logits=logits), 1) if family is Bernoulli else family(logits=logits)


def test_bernoulli_relaxation_is_logistic():
    z = relaxation_of(distribution(Bernoulli, LOGITS.expand(N, 3))).draw()
    for j, loc in enumerate(LOGITS.tolist()):
        assert stats.kstest(z[:, j].numpy(), stats.logistic(loc=loc).cdf).pvalue > 1e-4


def test_categorical_relaxation_is_gumbel():
    z = relaxation_of(distribution(OneHotCategorical, LOGITS.expand(N, 3))).draw()
    for k, loc in enumerate(torch.log_softmax(LOGITS, -1).tolist()):
        assert stats.kstest(z[:, k].numpy(), stats.gumbel_r(loc=loc).cdf).pvalue > 1e-4


@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical])
def test_hard_samples_of_relaxations_have_the_right_probabilities(family):
    q = distribution(family, LOGITS.expand(N, 3))
    p = torch.sigmoid(LOGITS) if family is Bernoulli else torch.softmax(LOGITS, -1)
    z = (relaxation_of(q).harden(relaxation_of(q).draw()).mean(0) - p) / (p * (1 - p) / N).sqrt()
    assert z.abs().max() < BOUND


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical])
def test_conditional_relaxation_against_rejection_sampling(family, index):
    """Given b_index = 1, and for Bernoullis given 0: accept those relaxations whose hard sample is that."""
    q = distribution(family, LOGITS.expand(N, 3))
    z = relaxation_of(q).draw()
    b = relaxation_of(q).harden(z)
    for state in (1, 0) if family is Bernoulli else (1,):
        accepted = z[b[:, index] == state]
        given = torch.full((N, 3), float(state), dtype=torch.float64)
        if family is OneHotCategorical:
            given = torch.zeros_like(given)
            given[:, index] = 1
        conditional, _ = relaxation_of(q).draw_given(given)
        columns = [index] if family is Bernoulli else range(3)
        for j in columns:
            assert stats.ks_2samp(accepted[:, j].numpy(), conditional[:, j].numpy()).pvalue > 1e-4
        if family is OneHotCategorical:  # and jointly: how the coordinates depend on one another
            for j in range(3):
                for k in range(j):
                    difference = [(a[:, j] - a[:, k]).numpy() for a in (accepted, conditional)]
                    assert stats.ks_2samp(*difference).pvalue > 1e-4


@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical])
def test_conditional_relaxation_makes_the_relaxation_anew(family):
    """Integrating z̃ | b over b gives the law of z."""
    q = distribution(family, LOGITS.expand(N, 3))
    conditional, _ = relaxation_of(q).draw_given(relaxation_of(q).harden(relaxation_of(q).draw()))
    fresh = relaxation_of(q).draw()
    for j in range(3):
        assert stats.ks_2samp(fresh[:, j].numpy(), conditional[:, j].numpy()).pvalue > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 10.0, 50.0])
@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical])
def test_conditional_relaxations_fall_on_the_side_of_the_sample(family, scale, dtype):
    logits = scale * torch.randn(N, 3, dtype=dtype).clamp(-1, 1)
    q = distribution(family, logits)
    b = relaxation_of(q).harden(relaxation_of(q).draw())
    z, slope = relaxation_of(q).draw_given(b)
    assert torch.equal(relaxation_of(q).harden(z), b)
    assert z.isfinite().all()
    assert ((slope >= 0) & (slope <= 1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("b", [0.0, 1.0])
@pytest.mark.parametrize("logit", [-50.0, 50.0])
@pytest.mark.parametrize("noise", ["least", "most"])
def test_even_impossible_samples_keep_their_side_at_the_ends_of_the_noise(monkeypatch, logit, b, noise, dtype):
    end = torch.finfo(dtype).tiny if noise == "least" else 1 - torch.finfo(dtype).eps / 2
    monkeypatch.setattr(
        "lightning_estimators.estimators.relaxation.uniform",
        lambda batch, event, **_: torch.full((*batch, *event), end, dtype=dtype),
    )
    q = distribution(Bernoulli, torch.full((1, 3), logit, dtype=dtype))
    given = torch.full((1, 3), b, dtype=dtype)
    z, slope = relaxation_of(q).draw_given(given)
    assert z.isfinite().all()
    assert slope.isfinite().all()
    assert torch.equal(relaxation_of(q).harden(z), given)


@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical])
def test_slopes_of_conditional_relaxations_are_their_derivatives(family):
    """At fixed noise, by differences: which reach z̃ through the papers' v' too, and through normalised logits."""
    logits, weights = torch.randn(2, 4, 3, dtype=torch.float64)
    q = distribution(family, logits)
    b = relaxation_of(q).harden(relaxation_of(q).draw())

    def weighted(moved):
        torch.manual_seed(1)
        return (weights * relaxation_of(distribution(family, moved)).draw_given(b)[0]).sum(-1)

    torch.manual_seed(1)
    _, slope = relaxation_of(q).draw_given(b)
    found = relaxation_of(q).through_normalization(weights * slope)
    for k, step in enumerate(1e-5 * torch.eye(3, dtype=torch.float64)):
        difference = (weighted(logits + step) - weighted(logits - step)) / 2e-5
        assert torch.allclose(found[:, k], difference, atol=1e-8)


@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical])
def test_relax_goes_to_the_hard_sample_with_the_temperature(family):
    q = distribution(family, torch.randn(100, 3, dtype=torch.float64))
    z = relaxation_of(q).draw()
    assert torch.allclose(relaxation_of(q).soften(z, 1e-6), relaxation_of(q).harden(z), atol=1e-6)
    assert (relaxation_of(q).soften(z, 1.0) - relaxation_of(q).harden(z)).abs().max() > 0.1


@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical])
def test_score_is_the_gradient_of_the_log_probability(family):
    logits = torch.randn(100, 3, requires_grad=True)
    q = distribution(family, logits)
    b = relaxation_of(q).harden(relaxation_of(q).draw())
    (expected,) = torch.autograd.grad(q.log_prob(b).sum(), logits)
    assert torch.allclose(score(q, b), expected, atol=1e-6)
