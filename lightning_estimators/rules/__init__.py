"""Generalized stochastic backpropagation: formulas for the gradient of E[f(z)], one file for each distribution family.

A *rule* computes the gradient in each parameter of a distribution from changes or derivatives of f at a sample.
Importing this package registers the rules of its families; `register_rule` and `register_cumulant` add further ones.
"""

from lightning_estimators.rules import (  # noqa: F401  # imported for the rules that they register
    bernoulli,
    categorical,
    counts,
    dirichlet,
    gamma,
    laplace,
    normal,
)
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
from lightning_estimators.rules.jet import Jet

__all__ = [
    "Cumulant",
    "Jet",
    "Rule",
    "cumulant_for",
    "has_cumulant",
    "has_rule",
    "register_cumulant",
    "register_rule",
    "rule_for",
]
