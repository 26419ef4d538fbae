"""Generalized stochastic backpropagation as rules on the distribution: which family has which."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.distributions import Distribution

from lightning_estimators.distributions import base_distribution
from lightning_estimators.objectives import Objective

__all__ = ["Rule", "register_rule", "registered_families", "rule_for"]

Rule = Callable[[Distribution, Tensor, Objective], dict[str, Tensor]]
"""`rule(q, z, f)`: the gradient in each parameter of q (see `distribution_parameters`) at the sample z of q."""

_rules: dict[type[Distribution], Rule] = {}


def register_rule(family: type[Distribution]) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule of a family, as `torch.distributions.register_kl` does.

    Args:
        family: Type of the distribution inside any `Independent`; subclasses inherit its rule.
    """

    def register(rule: Rule) -> Rule:
        _rules[family] = rule
        return rule

    return register


def registered_families() -> tuple[type[Distribution], ...]:
    """Return the families that have a rule."""
    return tuple(_rules)


def rule_for(q: Distribution) -> Rule:
    """Return the rule of q's family: the most special one registered.

    Raises:
        TypeError: There is none.
    """
    for family in type(base_distribution(q)).__mro__:
        if family in _rules:
            return _rules[family]
    known = ", ".join(family.__name__ for family in _rules)
    raise TypeError(
        f"stochastic backpropagation has rules for {known}; got {type(base_distribution(q)).__name__}. "
        "Register one with lightning_estimators.rules.register_rule, or use REINFORCE."
    )
