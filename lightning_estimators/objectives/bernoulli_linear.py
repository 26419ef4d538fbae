"""Bernoulli likelihood with logits that are linear in z: the cost of a linear decoder, or of logistic regression."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from lightning_estimators.objectives.base import check_order
from lightning_estimators.objectives.bernoulli_cost import bernoulli_cost
from lightning_estimators.objectives.compilation import is_compiled
from lightning_estimators.objectives.coordinates import Coordinates
from lightning_estimators.objectives.linear import LinearObjective
from lightning_estimators.objectives.softplus_change import (
    MAX_SPREAD,
    SoftplusAt,
    chebyshev_reach,
    chebyshev_terms,
    class_changes,
    flip_changes,
)
from lightning_estimators.objectives.softplus_products import (
    class_products,
    flip_products,
    move_products,
    product_reach,
)

__all__ = ["BernoulliLinear"]


class BernoulliLinear(LinearObjective):
    r"""$f(z) = -\log p(x \mid z) = \sum_p \text{softplus}(a_p) - x_p a_p$, $a = W z + c$, z flattened over its event.

    When coordinate j moves by δ, the pre-activations change by $w = \delta W_{\cdot j}$ (for one-hot coordinates, by
    the column of the new category minus that of the old one), and the cost changes by
    $\sum_p \log(1 + \sigma(a_p)(e^{w_p} - 1)) - x_p w_p$. This needs no further product with W. It is computed without
    subtracting large numbers of almost equal size, so it is accurate for weights and pre-activations of any size.

    There are several ways to compute the sum over p; which one is used depends on the kind of the coordinates, on the
    size of the weights, and on whether there is a compiler (`softplus_change`, `softplus_products`).

    Args:
        weight: W, shape `(P, D)`, D the number of entries of the event, categories included; also `(P,) + event_shape`.
        bias: c, shape `(P,)`, or None.
        target: x in [0, 1], broadcastable to `lead + (P,)`.
        event_dim: How many of the last axes of z are the event, categories included.
        signed: Whether $2z - 1$ enters in place of z.

    Raises:
        ValueError: The shapes of weight, bias and target do not fit each other.

    Example:
        >>> import torch
        >>> f = BernoulliLinear(torch.tensor([[1.0, -2.0]]), torch.zeros(1), target=torch.ones(1))
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        >>> f(z)
        tensor([0.3133, 0.6931])
        >>> f.coordinate_change(z, 1 - z)
        tensor([[ 0.3799,  1.0000],
                [-0.3799,  1.4338]])
    """

    closed_derivatives = True
    closed_changes = True

    def __init__(
        self, weight: Tensor, bias: Tensor | None, target: Tensor, event_dim: int = 1, *, signed: bool = False
    ) -> None:
        super().__init__(weight, bias, event_dim, signed=signed)
        if target.ndim < 1 or target.shape[-1] != len(weight):
            raise ValueError(
                f"BernoulliLinear expected a target of shape (..., {len(weight)}), one entry per row of weight "
                f"{tuple(weight.shape)}, got {tuple(target.shape)}. Flatten images before they become targets."
            )
        self.target = target

    def value(self, z: Tensor) -> Tensor:
        """Return -log p(x | z), attached to W and c."""
        return bernoulli_cost(self.pre_activations(z), self.target)

    def coordinate_change(self, z: Tensor, z_new: Tensor) -> Tensor:
        """Return the changes (shapes as in `Objective.coordinate_change`)."""
        at = Coordinates.of(z, z_new, self.event_dim)
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            weight, a, x = self._at(z)
            columns = weight.T.reshape(*at.z.shape[1:], -1)
            delta = (at.z_new - at.z).to(a.dtype)
            # The faster methods need to know the values of z and W. They are used on the CPU only: on a GPU, reading a
            # value would make the program wait until the GPU has computed it.
            readable = z.device.type == "cpu" and a.numel() > 0
            change = None
            if readable and not at.one_hot and bool((delta.abs() == delta.square()).all()):
                change = self._flips(a, x, columns, delta)
            elif readable and _are_classes(at):
                change = self._classes(a, x, columns, at)
            if change is None:
                change = self._moves(a, x, columns, delta)
        return at.unflatten(change)

    def _classes(self, a: Tensor, x: Tensor, columns: Tensor, at: Coordinates) -> Tensor | None:
        """Return the changes when variables move from one category to others; None if this method is not accurate.

        It computes the changes to all categories at once.
        """
        columns, current = columns.contiguous(), at.z.argmax(-1)
        high, low = columns.amax(1, keepdim=True), columns.amin(1, keepdim=True)
        spread = (high - low).max().item()
        change = None
        if spread <= product_reach(8) and is_compiled(len(a) * columns.numel(), a.device):
            # Only differences between columns count. Their middle is subtracted, so that exponentials do not overflow.
            change = self._compiled_classes(a, x, columns - (high + low) / 2, current, spread)
        if change is None and spread <= MAX_SPREAD and not _small(columns):
            change = class_changes(a, current, columns, spread, self._budget(a.device) // a.element_size())
            seen = (x @ columns.flatten(0, 1).T).reshape(change.shape)
            change -= seen - seen.gather(-1, current[..., None])
        return None if change is None else (at.z_new.to(a.dtype) * change).sum(-1)

    def _compiled_classes(self, a: Tensor, x: Tensor, columns: Tensor, current: Tensor, spread: float) -> Tensor | None:
        change = a.new_empty(len(a), *columns.shape[:2])
        slope = (a > 0).to(a.dtype) - x
        for some in self._blocks(columns):
            products = class_products(a, columns[some], current[:, some], spread)
            if products is None:
                return None
            seen = (slope @ columns[some].flatten(0, 1).T).reshape(products.shape)
            change[:, some] = products + (seen - seen.gather(-1, current[:, some, None]))
        return change

    def _flips(self, a: Tensor, x: Tensor, columns: Tensor, delta: Tensor) -> Tensor:
        """Return the changes when coordinates move by -1, 0 or 1, as those of binary variables do.

        Columns of W whose weights are too large for the compiled products and for the Chebyshev series are left to
        `_moves`.
        """
        reach = torch.maximum(columns.amax((1, 2)), -columns.amin((1, 2)))
        # Where weights are so small that a series of six terms suffices, it is as fast as the compiled products.
        long = chebyshev_terms(reach.max().item(), a.dtype) > 6
        compiled = long and is_compiled(len(a) * columns.numel(), a.device)
        near = reach <= (product_reach(8) if compiled else chebyshev_reach(24, a.dtype))
        if not near.all():
            change = torch.empty_like(delta[..., 0])
            for some, method in ((near, self._flips), (~near, self._moves)):
                if some.any():
                    change[:, :, some] = method(a, x, columns[some], delta[:, :, some])
            return change
        if compiled:
            products = self._compiled_flips(a, x, columns, delta, reach.max().item())
            # After compiling has failed once, `is_compiled` is False, and the series is used.
            return self._flips(a, x, columns, delta) if products is None else products
        block = self._budget(a.device) // a.element_size()
        odd, even = flip_changes(a, x, columns[:, 0], reach.max().item(), block)
        return delta[..., 0] * (odd + delta[..., 0] * even)

    def _compiled_flips(self, a: Tensor, x: Tensor, columns: Tensor, delta: Tensor, reach: float) -> Tensor | None:
        change = delta[0, ..., 0] * (((a > 0).to(a.dtype) - x) @ columns[:, 0].T)
        for some in self._blocks(columns):
            by = delta[0, :, some, 0]
            products = flip_products(a, columns[some, 0], by < 0, reach)
            if products is None:
                return None
            change[:, some] += by.abs() * products
        return change[None]

    def _moves(self, a: Tensor, x: Tensor, columns: Tensor, delta: Tensor) -> Tensor:
        """Return the changes for moves of any size, shape `(A, L, J)`; slower than the methods for special moves."""
        coordinates, entries, outputs = columns.shape
        # The part that is linear in the move, sum_p x_p w_p, for all coordinates at once.
        seen = (x @ columns.reshape(-1, outputs).T).reshape(-1, coordinates, entries)
        change = -(delta * seen).sum(-1)
        compiled = is_compiled(len(delta) * len(a) * coordinates * outputs, a.device)
        if compiled and self._add_compiled_moves(change, a, columns, delta):
            return change
        # Chunks are sized so that the intermediate results stay in the cache: sixteen tensors of some rows of a (half
        # of them kept in `SoftplusAt`), and two tensors of moves for each of these rows.
        row = outputs * a.element_size()
        for first, last in self._chunks(len(a), 16 * row, a.device):
            softplus = SoftplusAt(a[first:last])
            for start, stop in self._chunks(coordinates, 2 * (last - first) * row, a.device):
                some = columns[start:stop].contiguous()
                for alternative in range(len(delta)):
                    move = delta[alternative, first:last, start:stop].transpose(0, 1)
                    w = move * some if entries == 1 else move @ some
                    change[alternative, first:last, start:stop] += softplus.summed_change(w).T
        return change

    def _add_compiled_moves(self, change: Tensor, a: Tensor, columns: Tensor, delta: Tensor) -> bool:
        """Add the nonlinear part of the changes for moves of any size, compiled; return whether compiling worked."""
        entries = columns.shape[1]
        # The move of a scalar is a number times a column of W. The moves of vectors are computed as tensors first.
        for some in self._blocks(columns if entries == 1 else columns[:, :1].expand(-1, len(a), -1)):
            for alternative in range(len(delta)):
                move = delta[alternative, :, some]
                if entries == 1:
                    products = move_products(a, move[..., 0], columns[None, some, 0])
                else:
                    w = (move.transpose(0, 1) @ columns[some]).transpose(0, 1)
                    products = move_products(a, a.new_ones(1, 1), w)
                if products is None:
                    return False
                change[alternative, :, some] += products
        return True

    def _blocks(self, columns: Tensor) -> list[slice]:
        """Split columns into blocks of equal size, such that the two tables made of a block fit in the cache."""
        row = columns[0].numel() * columns.element_size()
        count = min(len(columns), math.ceil(2 * len(columns) * row / self._budget(columns.device)))
        edges = [len(columns) * i // count for i in range(count + 1)]
        return [slice(start, stop) for start, stop in pairwise(edges)]

    def coordinate_derivative(self, z: Tensor, order: int = 1) -> Tensor:
        r"""Return $\sum_p h^{(n)}(a_p) W_{pj}^n$ with $h(a_p) = \text{softplus}(a_p) - x_p a_p$."""
        check_order(order)
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            weight, a, x = self._at(z)
            slope = torch.sigmoid(a) - x if order == 1 else sigmoid_derivative(a, order - 1)
            return (slope @ weight**order).reshape(z.shape)

    def coordinate_slope(self, z: Tensor, z_new: Tensor, direction: Tensor | None = None) -> Tensor:
        r"""Return $\sum_p (\sigma(a_p + w_p) - x_p)\, d_p$, where d is column j of W, or W times the direction."""
        at = Coordinates.of(z, z_new, self.event_dim)
        along = at.directions(direction)
        _, coordinates, entries = at.z.shape
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            weight, a, x = self._at(z)
            columns = weight.T.reshape(coordinates, entries, -1)
            delta, along = (at.z_new - at.z).to(a.dtype), along.to(a.dtype)
            out = a.new_empty(delta.shape[:-1])
            for alternative in range(len(delta)):
                for start, stop in self._chunks(coordinates, 2 * a.numel() * a.element_size(), z.device):
                    some = slice(start, stop)
                    w = delta[alternative, :, some].transpose(0, 1) @ columns[some]
                    d = along[alternative, :, some].transpose(0, 1) @ columns[some]
                    out[alternative, :, some] = ((torch.sigmoid(a + w) - x) * d).sum(-1).T
        return at.unflatten(out)

    def is_differentiable(self, z: Tensor) -> bool:
        """Return True."""
        return True

    def _at(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return da/dz, and pre-activations and targets of shape `(L, P)`, all in at least float32."""
        dtype = torch.promote_types(torch.promote_types(self.weight.dtype, z.dtype), torch.float32)
        weight = self.weight.to(dtype)
        a = self.pre_activations_again(z, dtype)
        weight = 2 * weight if self.signed else weight
        return weight, a.reshape(-1, len(weight)), self.target.to(dtype).expand(a.shape).reshape(-1, len(weight))


def _are_classes(at: Coordinates) -> bool:
    """Whether coordinates are one-hot vectors, of which at least half of all categories are wanted as alternatives."""
    return at.one_hot and 2 * len(at.z_new) >= at.z.shape[-1] and _are_one_hot(at.z) and _are_one_hot(at.z_new)


def _are_one_hot(z: Tensor) -> bool:
    return bool((z.square() == z).all() and (z.sum(-1) == 1).all())


def _small(columns: Tensor) -> bool:
    """Whether the weights are so small that 1 + the change would round most digits of the change away."""
    return columns.abs().mean().item() < 1e5 * torch.finfo(columns.dtype).eps


def sigmoid_derivative(a: Tensor, order: int) -> Tensor:
    """Return the derivative of the given order, at least 1, of the logistic function.

    It is computed as a polynomial in the logistic function itself.
    """
    s = torch.sigmoid(-a.abs())  # at most 1/2, which keeps all digits in both tails; they are symmetric
    out = torch.zeros_like(s)
    for c in reversed(_sigmoid_polynomial(order)):
        out = out * s + c
    out = out * s * (1 - s)
    return out if order % 2 else torch.where(a < 0, out, -out)


@cache
def _sigmoid_polynomial(order: int) -> tuple[int, ...]:
    """Return the coefficients of the polynomial q_n in sigma^(n) = sigma' q_n(sigma).

    They follow from q_1 = 1 and q_{n+1}(s) = (1 - 2s) q_n(s) + s(1 - s) q_n'(s).
    """
    if order == 1:
        return (1,)
    q = _sigmoid_polynomial(order - 1)
    out = [0] * (len(q) + 1)
    for power, c in enumerate(q):
        out[power] += c * (1 + power)
        out[power + 1] -= c * (2 + power)
    return tuple(out)
