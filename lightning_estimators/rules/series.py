"""The series form of stochastic backpropagation: a weighted sum of the derivatives of f of orders 1 to N.

The weights are coefficients of the cumulant generating function K of the distribution, differentiated in a parameter.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Beta, Dirichlet, Distribution

from lightning_estimators.distributions import base_distribution, distribution_parameters, standard_gamma
from lightning_estimators.objectives import CallableObjective, Objective
from lightning_estimators.rules.base import Cumulant, cumulant_for
from lightning_estimators.rules.gamma import gamma_cumulant
from lightning_estimators.rules.jet import Jet

__all__ = ["exponential_rule", "series_coefficients", "series_rule"]


def series_coefficients(cumulant: Cumulant, parameters: dict[str, Tensor], order: int) -> dict[str, list[Tensor]]:
    r"""Return, for each parameter, the coefficients $a_1, \dots, a_N$ of $\nabla_\theta K_\theta(t) = \sum_n a_n t^n$.

    The Taylor series of K at t = 0 is computed by arithmetic on power series (`Jet`), and its coefficients are
    differentiated in the parameters.

    Args:
        cumulant: The cumulant generating function K.
        parameters: The parameters by name; K acts on them elementwise.
        order: The largest order N.

    Example:
        >>> import torch
        >>> from lightning_estimators.rules.gamma import gamma_cumulant
        >>> gamma = {"concentration": torch.tensor(3.0), "rate": torch.tensor(0.5)}
        >>> series_coefficients(gamma_cumulant, gamma, 3)["concentration"]  # scale^n / n
        [tensor(2.), tensor(2.), tensor(2.6667)]
    """
    with torch.enable_grad():
        leaves = {name: p.detach().clone().requires_grad_() for name, p in _without_repeats(parameters).items()}
        zero = torch.zeros_like(next(iter(leaves.values())))
        t = Jet([zero, zero + 1, *(zero for _ in range(order - 1))])
        gradients = [_gradient(c, list(leaves.values())) for c in cumulant(leaves, t).coefficients[1:]]
    columns = zip(*gradients, strict=True)
    return {
        name: [a.expand(p.shape) for a in column] for (name, p), column in zip(parameters.items(), columns, strict=True)
    }


def _without_repeats(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keep one entry of every axis along which all parameters repeat (`expand`), such as that of samples."""
    if len({p.shape for p in parameters.values()}) > 1:
        return parameters
    for axis in range(next(iter(parameters.values())).ndim):
        if all(p.stride(axis) == 0 for p in parameters.values()):
            parameters = {name: p.narrow(axis, 0, min(1, p.shape[axis])) for name, p in parameters.items()}
    return parameters


def _gradient(coefficient: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    if not coefficient.requires_grad:  # such as the third cumulant of a normal distribution, which is always 0
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(coefficient.sum(), leaves, retain_graph=True, allow_unused=True, materialize_grads=True)


def series_rule(q: Distribution, z: Tensor, f: Objective, order: int) -> dict[str, Tensor]:
    r"""Return $\sum_{n=1}^N a_n f^{(n)}(z)$ in every coordinate, for every parameter.

    Beta and Dirichlet variables are normalised gamma variables. Here f is differentiated as a function of these gamma
    variables. Its n-th derivative is of order G^-n, where G is the sum of the gamma variables, so the n-th term has a
    finite mean only if the concentrations sum to more than n. If their sum is small, G underflows and the result is not
    finite. The jump form (`dirichlet`) has no such limits.

    Source: Echraibi et al. (2020), *Generalized stochastic backpropagation*, theorem 1 truncated as in eq. 26;
    eqs. 20 and 21 for the beta and the Dirichlet. https://hal.science/hal-02968975
    """
    parameters = {name: p.detach() for name, p in distribution_parameters(q).items()}
    if isinstance(base_distribution(q), Beta | Dirichlet):
        return _normalised_series(q, z, f, order)
    coefficients = series_coefficients(cumulant_for(q), parameters, order)
    derivatives = [f.coordinate_derivative(z, n) for n in range(1, order + 1)]
    return {name: sum_products(a, derivatives) for name, a in coefficients.items()}


def sum_products(coefficients: list[Tensor], derivatives: list[Tensor]) -> Tensor:
    """Return Σ aₙ f⁽ⁿ⁾."""
    total = coefficients[0] * derivatives[0]
    for a, derivative in zip(coefficients[1:], derivatives[1:], strict=True):
        total = total + a * derivative
    return total


def _normalised_series(q: Distribution, z: Tensor, f: Objective, order: int) -> dict[str, Tensor]:
    parameters = {name: p.detach() for name, p in distribution_parameters(q).items()}
    beta = isinstance(base_distribution(q), Beta)
    alpha = torch.stack(list(parameters.values()), -1) if beta else parameters["concentration"]
    simplex = torch.stack([z, 1 - z], -1) if beta else z
    total = standard_gamma(alpha.sum(-1, keepdim=True))
    normalised = CallableObjective(
        lambda g: f((g / g.sum(-1, keepdim=True))[..., 0] if beta else g / g.sum(-1, keepdim=True)),
        event_dim=f.event_dim + int(beta),
    )
    unit = {"concentration": alpha, "rate": torch.ones_like(alpha)}
    coefficients = series_coefficients(gamma_cumulant, unit, order)["concentration"]
    derivatives = [normalised.coordinate_derivative(total * simplex, n) for n in range(1, order + 1)]
    gradient = sum_products(coefficients, derivatives)
    return dict(zip(parameters, gradient.unbind(-1), strict=True)) if beta else {"concentration": gradient}


def exponential_rule(q: Distribution, z: Tensor, f: Objective) -> dict[str, Tensor] | None:
    r"""Return $\nabla_\theta K_\theta(\varepsilon) f(z)$ if f is exponential in every coordinate; None if it is not.

    This is the sum of the whole infinite series. Each derivative of $e^{\varepsilon z}$ is ε times the one before, so
    the series in the derivatives of f is the series of $\nabla_\theta K_\theta$ at t = ε, times f(z).

    Raises:
        ValueError: $K_\theta(\varepsilon)$ is not finite, so the expectation is not: for a gamma variable of scale μ,
            if με ≥ 1.

    Source: Echraibi et al. (2020), *Generalized stochastic backpropagation*, eq. 25, https://hal.science/hal-02968975.
    """
    terms = f.exponential(z)
    if terms is None:
        return None
    rate, value = terms
    with torch.enable_grad():
        leaves = {name: p.detach().clone().requires_grad_() for name, p in distribution_parameters(q).items()}
        cumulant = cumulant_for(q)(leaves, rate.expand(z.shape))
        gradients = torch.autograd.grad(cumulant.sum(), list(leaves.values()))
    # Outside of the domain of K its gradient may still be a finite number, so K itself is looked at.
    if not cumulant.isfinite().all():
        family = type(base_distribution(q)).__name__
        raise ValueError(
            f"the expectation of exp(ε z) is not finite for some z of this {family} and rate ε between "
            f"{rate.min().item():.4g} and {rate.max().item():.4g}: it has no gradient. Lower the rate of the cost, or "
            "keep the parameters where it is finite (a gamma: its rate above that of the cost; a Laplace: its scale "
            "below the inverse of that rate's absolute value)."
        )
    return {name: gradient * value for name, gradient in zip(leaves, gradients, strict=True)}
