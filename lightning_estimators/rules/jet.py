"""Arithmetic on truncated power series, which gives the Taylor coefficients of a function at t = 0.

Differentiating a function n times in turn by autograd gives the same numbers, but the graph becomes about three times
as large with every order. A `Jet` holds the first coefficients of a power series, and elementwise functions map it to
another one, in a time that grows with the square of the order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Jet"]

Number = float | int


class Jet:
    r"""A truncated power series $c_0 + c_1 t + \dots + c_N t^N$ with tensors as coefficients.

    Supported are arithmetic, integer and real powers, and `sqrt`, `exp`, `expm1`, `log`, `log1p`, `sigmoid`, `lgamma`
    and `digamma` (of positive arguments), as methods of the jet and as functions of torch.

    Args:
        coefficients: $c_0, \dots, c_N$, tensors of shapes that can be broadcast.

    Example:
        >>> import torch
        >>> t = Jet([torch.tensor(0.0), torch.tensor(1.0), torch.tensor(0.0), torch.tensor(0.0)])
        >>> [round(c.item(), 4) for c in torch.log1p(-2 * t).coefficients]
        [-0.0, -2.0, -2.0, -2.6667]
    """

    def __init__(self, coefficients: list[Tensor]) -> None:
        self.coefficients = coefficients

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let torch's functions, as in torch.exp(jet) or tensor * jet, call the jet's methods of the same name."""
        method = _METHODS.get(getattr(function, "__name__", ""))
        if method is None or kwargs:
            return NotImplemented
        return method(*args)

    def __add__(self, other: Jet | Tensor | Number) -> Jet:
        b = self._lift(other)
        return Jet([x + y for x, y in zip(self.coefficients, b, strict=True)])

    def __neg__(self) -> Jet:
        return Jet([-c for c in self.coefficients])

    def __sub__(self, other: Jet | Tensor | Number) -> Jet:
        return self + (-other)

    def __rsub__(self, other: Tensor | Number) -> Jet:
        return -self + other

    def __mul__(self, other: Jet | Tensor | Number) -> Jet:
        if not isinstance(other, Jet):
            return Jet([c * other for c in self.coefficients])
        a, b = self.coefficients, other.coefficients
        return Jet([_sum(a[i] * b[n - i] for i in range(n + 1)) for n in range(len(a))])

    def __truediv__(self, other: Jet | Tensor | Number) -> Jet:
        if not isinstance(other, Jet):
            return Jet([c / other for c in self.coefficients])
        return self * other**-1

    def __rtruediv__(self, other: Tensor | Number) -> Jet:
        return self**-1 * other

    def __pow__(self, power: Tensor | Number) -> Jet:
        if isinstance(power, int) and power >= 0:  # repeated multiplication also works where c_0 is 0
            return functools.reduce(Jet.__mul__, [self] * power, self._constant(1.0))
        # The coefficients of y = x^p follow from x y' = p x' y.
        x = self.coefficients
        y = [x[0] ** power]
        for n in range(1, len(x)):
            y.append(_sum((power * i - (n - i)) * x[i] * y[n - i] for i in range(1, n + 1)) / (n * x[0]))
        return Jet(y)

    __radd__ = __add__
    __rmul__ = __mul__

    def sqrt(self) -> Jet:
        """Return the square root."""
        return self**0.5

    def exp(self) -> Jet:
        """Return the exponential y, whose coefficients follow from y' = x' y."""
        x = self.coefficients
        y = [x[0].exp()]
        for n in range(1, len(x)):
            y.append(_sum(i * x[i] * y[n - i] for i in range(1, n + 1)) / n)
        return Jet(y)

    def expm1(self) -> Jet:
        """Return exp(x) − 1."""
        y = self.exp().coefficients
        return Jet([self.coefficients[0].expm1(), *y[1:]])

    def log(self) -> Jet:
        """Return the logarithm y, whose coefficients follow from x y' = x'."""
        x = self.coefficients
        y = [x[0].log()]
        for n in range(1, len(x)):
            inner = _sum(i * y[i] * x[n - i] for i in range(1, n)) / n if n > 1 else 0.0
            y.append((x[n] - inner) / x[0])
        return Jet(y)

    def log1p(self) -> Jet:
        """Return log(1 + x)."""
        y = (self + 1.0).log().coefficients
        return Jet([self.coefficients[0].log1p(), *y[1:]])

    def sigmoid(self) -> Jet:
        """Return 1 / (1 + exp(−x))."""
        return ((-self).exp() + 1.0) ** -1

    def lgamma(self) -> Jet:
        """Return log Γ(x), whose derivatives are polygamma functions."""
        x = self.coefficients[0]
        return self._composed([x.lgamma(), *(torch.polygamma(n - 1, x) for n in range(1, len(self.coefficients)))])

    def digamma(self) -> Jet:
        """Return ψ(x), the derivative of log Γ(x)."""
        x = self.coefficients[0]
        return self._composed([torch.polygamma(n, x) for n in range(len(self.coefficients))])

    def _composed(self, derivatives: list[Tensor]) -> Jet:
        """Return g(x), given the derivatives of g at the constant term $c_0$ of x, by Horner's scheme."""
        x = self.coefficients
        move = Jet([torch.zeros_like(x[0]), *x[1:]])
        result = self._constant(0.0)
        for n in range(len(derivatives) - 1, -1, -1):
            result = result * move + derivatives[n] / math.factorial(n)
        return result

    def _lift(self, other: Jet | Tensor | Number) -> list[Tensor]:
        return other.coefficients if isinstance(other, Jet) else self._constant(other).coefficients

    def _constant(self, value: Tensor | Number) -> Jet:
        zero = torch.zeros_like(self.coefficients[0])
        return Jet([zero + value, *(zero for _ in self.coefficients[1:])])


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return functools.reduce(Tensor.__add__, terms)


def _reflected(name: str) -> Callable[[Any, Any], Any]:
    """Return the function of torch for a binary operation of which either side may be the jet."""
    return lambda a, b: getattr(a, f"__{name}__")(b) if isinstance(a, Jet) else getattr(b, f"__r{name}__")(a)


_METHODS: dict[str, Callable[..., Any]] = {
    **{name: getattr(Jet, name) for name in ("sqrt", "exp", "expm1", "log", "log1p", "sigmoid", "lgamma", "digamma")},
    **{f"special_{name}": getattr(Jet, method) for name, method in (("gammaln", "lgamma"), ("digamma", "digamma"))},
    "special_psi": Jet.digamma,
    **{name: _reflected(name) for name in ("add", "sub", "mul")},
    **{name: _reflected("truediv") for name in ("div", "true_divide")},
    **dict.fromkeys(("pow",), Jet.__pow__),
    "square": lambda x: x * x,
    "neg": Jet.__neg__,
}
