"""The registry of gradient rules and of cumulant generating functions, by distribution family."""

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
"""`rule(q, z, f)` returns an estimate of the gradient of E[f] in each parameter of q (see `distribution_parameters`).

z is a sample of q; the mean of the estimate over z, and over the noise that the rule draws, is the exact gradient.
"""

Cumulant = Callable[[dict[str, Tensor], Any], Any]
"""`cumulant(parameters, t)` returns log E[exp(t z)] of one coordinate z, elementwise in t (tensor or `rules.Jet`)."""

_rules: dict[tuple[type[Distribution], bool], Rule] = {}
_cumulants: dict[type[Distribution], Cumulant] = {}


def register_rule(family: type[Distribution], *, f_gradient: bool) -> Callable[[Rule], Rule]:
    """Register the decorated function as a rule of a family, as `torch.distributions.register_kl` does.

    Args:
        family: The class of the distribution, without any `Independent` around it. Its subclasses have the same rule.
        f_gradient: Whether the rule uses derivatives of f in z. If not, f may be a black box.
    """

    def register(rule: Rule) -> Rule:
        _rules[family, f_gradient] = rule
        return rule

    return register


def register_cumulant(family: type[Distribution]) -> Callable[[Cumulant], Cumulant]:
    """Register the decorated function as the cumulant generating function of a family.

    The series form of stochastic backpropagation needs nothing else: it finds its coefficients by differentiation.

    Args:
        family: The class of the distribution, without any `Independent` around it; it holds for its subclasses too.
    """

    def register(cumulant: Cumulant) -> Cumulant:
        _cumulants[family] = cumulant
        return cumulant

    return register


def has_rule(q: Distribution, *, f_gradient: bool) -> bool:
    """Whether the family of q has a rule that does (`f_gradient=True`) or does not use derivatives of f."""
    return any((family, f_gradient) in _rules for family in type(base_distribution(q)).__mro__)


def rule_for(q: Distribution, *, f_gradient: bool) -> Rule:
    """Return the rule of q's class, or of its nearest superclass that has one.

    Raises:
        TypeError: No rule is registered.
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
    """Return the cumulant generating function of q's class, or of its nearest superclass that has one.

    Raises:
        TypeError: None is registered.
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
