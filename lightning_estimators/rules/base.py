"""Generalized stochastic backpropagation as rules on the distribution: which family has which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.distributions import Distribution

from lightning_estimators.distributions import base_distribution
from lightning_estimators.objectives import Objective

__all__ = [
    "Cumulant",
    "Rule",
    "cumulant_for",
    "has_cumulant",
    "has_rule",
    "register_cumulant",
    "register_rule",
    "rule_for",
]

Rule = Callable[[Distribution, Tensor, Objective], dict[str, Tensor]]
"""`rule(q, z, f)`: the gradient in each parameter of q (see `distribution_parameters`) at the sample z."""

Cumulant = Callable[[dict[str, Tensor], Any], Any]
"""`cumulant(parameters, t)`: log E exp(t z) of one coordinate, elementwise in t, a tensor or a `rules.Jet`."""

_rules: dict[tuple[type[Distribution], bool], Rule] = {}
_cumulants: dict[type[Distribution], Cumulant] = {}


def register_rule(family: type[Distribution], *, f_gradient: bool) -> Callable[[Rule], Rule]:
    """Register the decorated function as a rule of a family, as `torch.distributions.register_kl` does.

    Args:
        family: Type of the distribution inside any `Independent`; subclasses inherit its rules.
        f_gradient: Whether the rule differentiates f in z; if not, it works for a black box.
    """

    def register(rule: Rule) -> Rule:
        _rules[family, f_gradient] = rule
        return rule

    return register


def register_cumulant(family: type[Distribution]) -> Callable[[Cumulant], Cumulant]:
    """Register the decorated function as the cumulant generating function of a family.

    That is all the series form needs: its coefficients are found by differentiation.

    Args:
        family: Type of the distribution inside any `Independent`; subclasses inherit it.
    """

    def register(cumulant: Cumulant) -> Cumulant:
        _cumulants[family] = cumulant
        return cumulant

    return register


def has_rule(q: Distribution, *, f_gradient: bool) -> bool:
    """Whether the family of q has a rule of that kind."""
    return any((family, f_gradient) in _rules for family in type(base_distribution(q)).__mro__)


def rule_for(q: Distribution, *, f_gradient: bool) -> Rule:
    """Return the rule of q's family: the most special one registered.

    Raises:
        TypeError: There is none.
    """
    for family in type(base_distribution(q)).__mro__:
        if (family, f_gradient) in _rules:
            return _rules[family, f_gradient]
    given = type(base_distribution(q)).__name__
    known = ", ".join(sorted(family.__name__ for family, gradient in _rules if gradient == f_gradient))
    kind = "differentiates f" if f_gradient else "takes f as a black box"
    other = ""
    if has_rule(q, f_gradient=not f_gradient):
        other = f" {given} has one that {'takes f as a black box' if f_gradient else 'differentiates f'}"
        other += f": use f_gradient={not f_gradient} (or None to let f decide)."
    raise TypeError(
        f"stochastic backpropagation has no rule for {given} that {kind}; there is one for {known}.{other} "
        "Otherwise use REINFORCE, or register a rule with lightning_estimators.rules.register_rule."
    )


def has_cumulant(q: Distribution) -> bool:
    """Whether the cumulant generating function of q's family is known."""
    return any(family in _cumulants for family in type(base_distribution(q)).__mro__)


def cumulant_for(q: Distribution) -> Cumulant:
    """Return the cumulant generating function of q's family.

    Raises:
        TypeError: There is none.
    """
    for family in type(base_distribution(q)).__mro__:
        if family in _cumulants:
            return _cumulants[family]
    known = ", ".join(sorted(family.__name__ for family in _cumulants))
    given = type(base_distribution(q)).__name__
    raise TypeError(
        f"the series form needs the cumulant generating function of {given}; it knows those of {known}. "
        'Register it with lightning_estimators.rules.register_cumulant, or use form="jump".'
    )
