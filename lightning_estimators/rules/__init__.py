"""Generalized stochastic backpropagation: one file per distribution family. Importing them registers their rules."""

from lightning_estimators.rules.base import (
    Cumulant,
    Rule,
    cumulant_for,
    has_cumulant,
    has_rule,
    register_cumulant,
    register_rule,
    rule_for,
)
from lightning_estimators.rules.bernoulli import bernoulli_rule
from lightning_estimators.rules.categorical import categorical_rule
from lightning_estimators.rules.counts import (
    negative_binomial_cumulant,
    negative_binomial_rule,
    poisson_cumulant,
    poisson_rule,
)
from lightning_estimators.rules.dirichlet import (
    beta_derivatives,
    beta_differences,
    dirichlet_derivatives,
    dirichlet_differences,
)
from lightning_estimators.rules.gamma import gamma_cumulant, gamma_derivatives, gamma_differences
from lightning_estimators.rules.jet import Jet
from lightning_estimators.rules.laplace import laplace_cumulant, laplace_derivatives, laplace_differences
from lightning_estimators.rules.normal import (
    multivariate_normal_derivatives,
    normal_cumulant,
    normal_derivatives,
)
from lightning_estimators.rules.series import exponential_rule, series_coefficients, series_rule

__all__ = [
    "Cumulant",
    "Jet",
    "Rule",
    "bernoulli_rule",
    "beta_derivatives",
    "beta_differences",
    "categorical_rule",
    "cumulant_for",
    "dirichlet_derivatives",
    "dirichlet_differences",
    "exponential_rule",
    "gamma_cumulant",
    "gamma_derivatives",
    "gamma_differences",
    "has_cumulant",
    "has_rule",
    "laplace_cumulant",
    "laplace_derivatives",
    "laplace_differences",
    "multivariate_normal_derivatives",
    "negative_binomial_cumulant",
    "negative_binomial_rule",
    "normal_cumulant",
    "normal_derivatives",
    "poisson_cumulant",
    "poisson_rule",
    "register_cumulant",
    "register_rule",
    "rule_for",
    "series_coefficients",
    "series_rule",
]
