"""Special functions of power series against nested differentiation."""

import pytest
import torch

from lightning_estimators.rules import Jet
from lightning_estimators.rules.series import series_coefficients

FUNCTIONS = {
    "lgamma": torch.lgamma,
    "gammaln": torch.special.gammaln,
    "digamma": torch.digamma,
    "special.digamma": torch.special.digamma,
    "psi": torch.special.psi,
    "inside": lambda x: torch.exp(torch.lgamma(1 + x * x) - x) + torch.digamma(x) ** 2,
}


def nested(function, x, order):
    """Taylor coefficients of function(x + t + t²/2) by differentiating again and again."""
    t = torch.zeros_like(x).requires_grad_()
    value, out, factorial = function(x + t + t * t / 2), [], 1.0
    for n in range(order + 1):
        out.append(value.detach() / factorial)
        factorial *= n + 1
        (value,) = torch.autograd.grad(value.sum(), t, create_graph=True)
    return out


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_taylor_coefficients(function):
    x = torch.tensor([0.3, 1.0, 4.5], dtype=torch.float64)
    zero = torch.zeros_like(x)
    found = function(Jet([x, zero + 1, zero + 0.5, zero, zero])).coefficients
    for a, b in zip(found, nested(function, x, 4), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_the_cumulant_of_a_logarithm_of_a_gamma():
    """log Γ(a + t) − log Γ(a), whose first coefficients in a are polygamma functions."""
    a = torch.tensor([0.7, 3.0], dtype=torch.float64)
    found = series_coefficients(lambda p, t: torch.lgamma(p["a"] + t) - torch.lgamma(p["a"]), {"a": a}, 3)["a"]
    for n, (coefficient, factorial) in enumerate(zip(found, (1, 2, 6), strict=True), start=1):
        torch.testing.assert_close(coefficient, torch.polygamma(n, a) / factorial)
