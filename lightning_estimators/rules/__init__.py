"""Generalized stochastic backpropagation: one file per distribution family. Importing them registers their rules."""

from lightning_estimators.rules.base import Rule, register_rule, registered_families, rule_for
from lightning_estimators.rules.bernoulli import bernoulli_rule
from lightning_estimators.rules.categorical import categorical_rule

__all__ = ["Rule", "bernoulli_rule", "categorical_rule", "register_rule", "registered_families", "rule_for"]
