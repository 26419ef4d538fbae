"""Generalized stochastic backpropagation: the gradient rules of distribution families, one file per family.

Importing this package registers the rules of all its families. `register_rule` and `register_cumulant` add a family.
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
