"""What cannot work is refused, when built where that is known, else at the first call; never answered with zeros."""

import pytest
import torch
from torch.distributions import (
    Bernoulli,
    Beta,
    Binomial,
    Cauchy,
    Chi2,
    Dirichlet,
    Exponential,
    Gamma,
    Independent,
    Laplace,
    LogNormal,
    Multinomial,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
    Poisson,
)

from lightning_estimators.distributions import Delta
from lightning_estimators.estimators import (
    LAX,
    REINFORCE,
    GeneralizedReparameterization,
    Pathwise,
    StochasticBackprop,
)
from lightning_estimators.objectives import Separable, SquaredCost
from lightning_estimators.rules import cumulant_for, has_cumulant, has_rule, rule_for

ONE = torch.ones(4)


def q_of(family):
    made = {
        Bernoulli: lambda: Bernoulli(logits=ONE.clone().requires_grad_()),
        OneHotCategorical: lambda: OneHotCategorical(logits=torch.zeros(4, 3, requires_grad=True)),
        Dirichlet: lambda: Dirichlet(torch.ones(4, 3, requires_grad=True)),
        MultivariateNormal: lambda: MultivariateNormal(torch.zeros(4, 2, requires_grad=True), scale_tril=torch.eye(2)),
        NegativeBinomial: lambda: NegativeBinomial(ONE.clone().requires_grad_(), logits=ONE),
        Binomial: lambda: Binomial(3, logits=ONE),
        Multinomial: lambda: Multinomial(3, logits=torch.zeros(4, 3)),
    }
    if family in made:
        return made[family]()
    if family in (Exponential, Poisson, Chi2, Delta):
        return family(ONE.clone().requires_grad_())
    return family(ONE.clone().requires_grad_(), ONE)


def black_box(z):
    return (z.detach() > 0.5).float()


RULES = {  # black box, differentiable
    Bernoulli: (True, False),
    OneHotCategorical: (True, False),
    Laplace: (True, True),
    Normal: (True, True),
    MultivariateNormal: (False, True),
    Gamma: (True, True),
    Exponential: (True, True),
    Chi2: (True, True),
    Beta: (True, True),
    Dirichlet: (True, True),
    Poisson: (True, False),
    NegativeBinomial: (True, False),
}


@pytest.mark.parametrize("family", RULES, ids=lambda family: family.__name__)
def test_the_declared_columns_are_the_registered_ones(family):
    q = q_of(family)
    for f_gradient, there in zip((False, True), RULES[family], strict=True):
        assert has_rule(q, f_gradient=f_gradient) == there
        if there:
            StochasticBackprop(f_gradient=f_gradient).check(q)
            rule_for(q, f_gradient=f_gradient)
        else:
            with pytest.raises(TypeError, match=f"has no rule for {family.__name__} that .* there is one for"):
                StochasticBackprop(f_gradient=f_gradient).check(q)
            with pytest.raises(TypeError, match=f"use f_gradient={not f_gradient}"):
                StochasticBackprop(f_gradient=f_gradient)(q, lambda z: z)
    StochasticBackprop().check(q)


@pytest.mark.parametrize("family", [Cauchy, Binomial, Multinomial, LogNormal], ids=lambda family: family.__name__)
def test_unknown_families(family):
    for estimator in (StochasticBackprop(), StochasticBackprop(f_gradient=True), StochasticBackprop(f_gradient=False)):
        with pytest.raises(TypeError, match=f"no rule for {family.__name__}.*REINFORCE, or register"):
            estimator.prepare(q_of(family))


@pytest.mark.parametrize("family", [Cauchy, MultivariateNormal], ids=lambda family: family.__name__)
def test_series_of_families_without_a_cumulant(family):
    assert not has_cumulant(q_of(family))
    with pytest.raises(TypeError, match=f"generating function of {family.__name__}.*register_cumulant"):
        StochasticBackprop("series", 2).check(q_of(family))
    with pytest.raises(TypeError, match=r"it knows those of .*Gamma.*Laplace"):
        cumulant_for(q_of(family))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"form": "serie", "order": 2}, 'form must be "jump" or "series", got \'serie\''),
        ({"form": "series"}, 'form="series" needs an order'),
        ({"form": "jump", "order": 4}, 'form="jump" takes none; got .*order=4'),
        ({"order": 4}, 'form="jump" takes none'),
        ({"form": "series", "order": 0}, "integer of at least 1, got 0"),
        ({"form": "series", "order": -2}, "integer of at least 1, got -2"),
        ({"form": "series", "order": 2.5}, r"an integer order .*got 2\.5"),
        ({"form": "series", "order": True}, r"an integer order .*got True"),
        ({"form": "series", "order": "4"}, "order must be an integer or None, got '4'"),
        ({"form": "series", "order": 2, "f_gradient": False}, 'differentiates f; for a black box use form="jump"'),
        ({"f_gradient": "yes"}, "f_gradient must be True, False or None"),
        ({"num_samples": 0}, "num_samples of at least 1, got 0"),
    ],
)
def test_settings(settings, match):
    with pytest.raises((TypeError, ValueError), match=match):
        StochasticBackprop(**settings)


def test_correlated_normals_with_a_black_box():
    with pytest.raises(ValueError, match=r"rule of MultivariateNormal differentiates f, .*use REINFORCE, or LAX"):
        StochasticBackprop()(q_of(MultivariateNormal), lambda z: black_box(z.sum(-1)))


@pytest.mark.parametrize("family", [Laplace, Normal, Gamma, Beta, Dirichlet], ids=lambda family: family.__name__)
def test_black_boxes_where_f_must_be_differentiated(family):
    f = (lambda z: black_box(z[..., 0])) if family is Dirichlet else black_box
    with pytest.raises(ValueError, match=r"f_gradient=True.*no gradient in z.*Use f_gradient=False"):
        StochasticBackprop(f_gradient=True)(q_of(family), f)
    with pytest.raises(ValueError, match=r'form="series".*no gradient in z.*Use form="jump"'):
        StochasticBackprop("series", 2)(q_of(family), f)
    with pytest.raises(ValueError, match="Pathwise differentiates f"):
        Pathwise()(q_of(family), f)
    if family in (Gamma, Beta):
        with pytest.raises(ValueError, match="GeneralizedReparameterization differentiates f"):
            GeneralizedReparameterization()(q_of(family), f)


def test_series_out_of_reach_of_automatic_differentiation():
    q = Independent(Laplace(torch.zeros(1, 1000, requires_grad=True), torch.ones(1, 1000)), 1)
    with pytest.raises(ValueError, match=r"order 5 in 1000 coordinates .* 1000 \* 3\^5 passes.*lower the order"):
        StochasticBackprop("series", 5)(q, lambda z: z.sin().sum(-1))
    for f in (Separable(torch.sin), SquaredCost(1.0)):  # of known structure
        assert StochasticBackprop("series", 5)(q, f).isfinite().all()
    small = Independent(Laplace(torch.zeros(1, 2, requires_grad=True), torch.ones(1, 2)), 1)
    assert StochasticBackprop("series", 5)(small, lambda z: z.sin().sum(-1)).isfinite().all()


@pytest.mark.parametrize("estimator", [Pathwise, LAX])
@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical, Poisson, NegativeBinomial], ids=lambda f: f.__name__)
def test_families_without_rsample(estimator, family):
    with pytest.raises(TypeError, match=f"{estimator.__name__} needs a distribution with rsample, {family.__name__}"):
        estimator().prepare(Independent(q_of(family), 1) if family is Bernoulli else q_of(family))


@pytest.mark.parametrize("family", [Normal, Bernoulli, Dirichlet, Exponential], ids=lambda family: family.__name__)
def test_families_without_a_standardisation(family):
    with pytest.raises(TypeError, match=f"supports Gamma, Beta, LogNormal; got {family.__name__}"):
        GeneralizedReparameterization().prepare(q_of(family))


def test_declarations():
    assert (StochasticBackprop.gradient_of_f, LAX.gradient_of_f) == ("none", "none")
    assert (Pathwise.gradient_of_f, GeneralizedReparameterization.gradient_of_f) == ("samples", "samples")
    q = q_of(Gamma)
    assert StochasticBackprop().is_unbiased(q)
    assert not StochasticBackprop("series", 2).is_unbiased(q)
    assert StochasticBackprop("series", 2).is_unbiased(q_of(Bernoulli))  # whose rule is exact in either form
    assert all(kind().is_unbiased(q) for kind in (Pathwise, LAX, GeneralizedReparameterization))


SCALARS = [Bernoulli, Laplace, Gamma, Exponential, Chi2, Beta, Poisson, NegativeBinomial]


@pytest.mark.parametrize("family", SCALARS, ids=lambda family: family.__name__)
def test_a_black_box_gets_a_gradient(family):
    """No gradient of f is needed: differences are taken without being asked for, and they are not all zero."""
    leaf = torch.ones(500, requires_grad=True)
    parameters = {Bernoulli: {"logits": leaf}, NegativeBinomial: {"total_count": leaf, "logits": torch.zeros(500)}}
    positional = [leaf] if family in (Exponential, Chi2, Poisson) else [leaf, torch.ones(500)]
    q = family(**parameters[family]) if family in parameters else family(*positional)
    StochasticBackprop()(q, black_box).sum().backward()
    assert leaf.grad.isfinite().all()
    assert leaf.grad.abs().sum() > 0


@pytest.mark.parametrize("family", [Laplace, Gamma], ids=lambda family: family.__name__)
def test_the_black_box_of_a_score_or_lax_is_welcome(family):
    for estimator in (REINFORCE(), LAX()):
        q = q_of(family)
        estimator(q, black_box).sum().backward()
