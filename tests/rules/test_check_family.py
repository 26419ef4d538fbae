"""`check_family` passes what the package registers, and finds mistakes that users make."""

import pytest
import torch
from torch import nn
from torch.distributions import (
    Bernoulli,
    Beta,
    Dirichlet,
    Distribution,
    Exponential,
    Gamma,
    Independent,
    Laplace,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
    Poisson,
    Uniform,
)

from lightning_estimators.rules import register_cumulant, register_rule
from lightning_estimators.rules.laplace import laplace_cumulant, laplace_derivatives, laplace_differences
from lightning_estimators.testing import check_family


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    "q",
    [
        Bernoulli(logits=t(-1.0, 2.0)),
        OneHotCategorical(logits=t(0.0, 1.0, -1.0).expand(2, 3)),
        Laplace(t(0.3, -1.0), t(0.8, 2.0)),
        Normal(t(0.3, -1.0), t(0.8, 2.0)),
        Gamma(t(3.0, 0.7), t(0.5, 2.0)),
        Exponential(t(0.5, 2.0)),
        Beta(t(2.0, 0.8), t(1.5, 3.0)),
        Dirichlet(t(2.0, 1.5, 3.0)),
        Independent(Poisson(t(0.4, 3.0)), 1),
        NegativeBinomial(t(3.0, 1.2), logits=t(-0.4, 0.5)),
    ],
    ids=lambda q: type(q).__name__,
)
def test_what_the_package_registers_passes(q):
    report = check_family(q, num_samples=50_000)
    assert report.comparisons >= 3
    assert all(0 <= z < 5.5 for z in report.largest_z.values())


class Twin(Laplace):
    """A family of its own, so that mistakes can be registered for it."""


def wrong(rule, name, change):
    def changed(q, z, f):
        gradients = rule(q, z, f)
        gradients[name] = change(gradients[name])
        return gradients

    return changed


@pytest.mark.parametrize(
    ("f_gradient", "name", "change", "message"),
    [
        (False, "loc", lambda g: -g, r"rule\(f_gradient=False\): Twin, f is a .*'?loc"),
        (False, "scale", lambda g: 1.1 * g, r"rule\(f_gradient=False\): Twin.*scale"),
        (True, "scale", lambda g: g.sum(-1), "must have the shape of the parameter"),
    ],
)
def test_mistakes_in_rules_are_found(monkeypatch, f_gradient, name, change, message):
    monkeypatch.setattr("lightning_estimators.rules.base._rules", {})
    monkeypatch.setattr("lightning_estimators.rules.base._cumulants", {})
    rule = laplace_derivatives if f_gradient else laplace_differences
    register_rule(Twin, f_gradient=f_gradient)(wrong(rule, name, change))
    with pytest.raises(AssertionError, match=message):
        check_family(Twin(t(0.3, -1.0), t(0.8, 2.0)))


@pytest.mark.parametrize(
    ("cumulant", "message"),
    [
        (lambda p, t: laplace_cumulant(p, t) + 0.1, r"K\(0\)"),
        (lambda p, t: p["loc"] * t - torch.log1p(-((p["scale"] * t) ** 2)) * 0.9, r"E\[z\^2\]"),
    ],
)
def test_mistakes_in_cumulants_are_found(monkeypatch, cumulant, message):
    monkeypatch.setattr("lightning_estimators.rules.base._rules", {})
    monkeypatch.setattr("lightning_estimators.rules.base._cumulants", {})
    register_cumulant(Twin)(cumulant)
    with pytest.raises(AssertionError, match=message):
        check_family(Twin(t(0.3, -1.0), t(0.8, 2.0)))


def test_a_rule_that_forgets_a_parameter_is_found(monkeypatch):
    monkeypatch.setattr("lightning_estimators.rules.base._rules", {})
    register_rule(Twin, f_gradient=False)(lambda q, z, f: {"loc": laplace_differences(q, z, f)["loc"]})
    with pytest.raises(AssertionError, match=r"nothing for the parameters \['scale'\]"):
        check_family(Twin(t(0.3), t(0.8)), num_samples=100)


def test_refusals(monkeypatch):
    with pytest.raises(TypeError, match="neither a rule nor a cumulant is registered for Uniform"):
        check_family(Uniform(t(0.0), t(1.0)))

    class Silent(Distribution):
        arg_constraints = Laplace.arg_constraints
        has_rsample = False

        def __init__(self, loc, scale):
            self.loc, self.scale = loc, scale
            super().__init__(loc.shape, validate_args=False)

        def sample(self, sample_shape=()):
            return Laplace(self.loc, self.scale).sample(sample_shape)

    monkeypatch.setattr("lightning_estimators.rules.base._rules", {})
    register_rule(Silent, f_gradient=False)(laplace_differences)
    with pytest.raises(TypeError, match="no log_prob"):
        check_family(Silent(nn.Parameter(t(0.3)), t(0.8)), num_samples=10)


def test_the_noise_of_others_is_left_alone():
    torch.manual_seed(3)
    check_family(Laplace(t(0.3), t(0.8)), num_samples=100)
    after = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(3))
