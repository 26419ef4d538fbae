"""Bernoulli likelihood with logits that are linear in z: the cost of a linear decoder, or of logistic regression."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from lightning_estimators.objectives.bernoulli_cost import bernoulli_cost
from lightning_estimators.objectives.compilation import is_compiled
from lightning_estimators.objectives.coordinates import Coordinates, are_one_hot
from lightning_estimators.objectives.derivatives import check_order
from lightning_estimators.objectives.linear import LinearObjective
from lightning_estimators.objectives.sigmoid_derivatives import sigmoid_derivative
from lightning_estimators.objectives.softplus_change import MAX_SPREAD, SoftplusAt, class_changes
from lightning_estimators.objectives.softplus_factors import class_factors, flip_factors
from lightning_estimators.objectives.softplus_products import (
    class_products,
    flip_products,
    move_products,
    product_reach,
)
from lightning_estimators.objectives.softplus_series import flip_changes, series_reach, series_terms

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
            elif readable and at.are_classes():
                change = self._classes(a, x, columns, at)
            if change is None:
                change = self._moves(a, x, columns, delta)
        return at.unflatten(change)

    def class_change(self, z: Tensor) -> Tensor | None:
        """Return the changes to all categories (see `Objective.class_change`); None if fast methods do not apply."""
        if z.device.type != "cpu" or z.numel() == 0 or self.event_dim == 0 or not are_one_hot(z):
            return None
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            weight, a, x = self._at(z)
            flat = z.reshape(len(a), -1, z.shape[-1])
            change = self._to_classes(a, x, weight.T.reshape(*flat.shape[1:], -1), flat.argmax(-1))
        return None if change is None else change.reshape(z.shape)

    def _classes(self, a: Tensor, x: Tensor, columns: Tensor, at: Coordinates) -> Tensor | None:
        """Return the changes when variables move from one category to others; None if this method is not accurate."""
        change = self._to_classes(a, x, columns, at.z.argmax(-1))
        return None if change is None else (at.z_new.to(a.dtype) * change).sum(-1)

    def _to_classes(self, a: Tensor, x: Tensor, columns: Tensor, current: Tensor) -> Tensor | None:
        """Return the changes to all categories, shape `(L, J, K)`; None if this method is not accurate."""
        columns = columns.contiguous()
        high, low = columns.amax(1, keepdim=True), columns.amin(1, keepdim=True)
        spread = (high - low).max().item()
        elements = len(a) * columns.numel()
        # Without a compiler, all digits of smaller changes would take ten times as long.
        factors = spread <= MAX_SPREAD and not _small(a, x, columns, 1e5 if is_compiled(elements, a.device) else 3e4)
        change = None
        if is_compiled(elements, a.device):
            # Only differences between columns count. Their middle is subtracted, so that exponentials do not overflow.
            centred = columns - (high + low) / 2
            change = self._factored_classes(a, centred, current) if factors else None
            if change is None and spread <= product_reach(8) and is_compiled(elements, a.device):
                return self._compiled_classes(a, x, centred, current, spread)
        if change is None and factors:
            change = class_changes(a, current, columns, spread, self._budget(a.device) // a.element_size())
        if change is not None:
            seen = (x @ columns.flatten(0, 1).T).reshape(change.shape)
            change.sub_(seen).add_(seen.gather(-1, current[..., None]))
        return change

    def _factored_classes(self, a: Tensor, columns: Tensor, current: Tensor) -> Tensor | None:
        change = a.new_empty(len(a), *columns.shape[:2])
        for some in self._blocks(columns, 4 * self._budget(columns.device)):
            factors = class_factors(a, columns[some], current[:, some])
            if factors is None:
                return None
            change[:, some] = factors
        return change

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
        # Where weights are so small that a series of six terms suffices, it is as fast as compiled loops.
        long = series_terms(reach.max().item(), a.dtype) > 6
        elements = len(a) * columns.numel()
        if long and is_compiled(elements, a.device) and not _small(a, x, columns):
            factored = self._factored_flips(a, x, columns[:, 0], delta[0, ..., 0])
            if factored is not None:
                return factored[None]
        compiled = long and is_compiled(elements, a.device)  # False after compiling has failed
        near = reach <= (product_reach(8) if compiled else series_reach(24, a.dtype))
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

    def _factored_flips(self, a: Tensor, x: Tensor, columns: Tensor, by: Tensor) -> Tensor | None:
        change = -by * (x @ columns.T)
        for some in self._blocks(columns, 4 * self._budget(columns.device)):
            factors = flip_factors(a, columns[some], by[:, some] < 0)
            if factors is None:
                return None
            change[:, some].addcmul_(by[:, some].abs(), factors)
        return change

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

    def _blocks(self, columns: Tensor, budget: int | None = None) -> list[slice]:
        """Split columns into blocks of equal size, such that the two tables made of a block fit in a budget of bytes.

        The default is a cache of the second level; what is read once for all points may lie in one of the third.
        """
        row = columns[0].numel() * columns.element_size()
        budget = self._budget(columns.device) if budget is None else budget
        count = min(len(columns), math.ceil(2 * len(columns) * row / budget))
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


def _small(a: Tensor, x: Tensor, columns: Tensor, least: float = 1e5) -> bool:
    """Whether changes are so small that sums of factors, which round relative to 1, would round their digits away.

    A mean slope must have `least` epsilons: from 1e5 on errors are within 2e-5 of a mean change, from 3e4 within 6e-5.
    """
    slope = (torch.sigmoid(a) - x).abs().mean() * columns.abs().mean()
    return not slope.item() >= least * torch.finfo(columns.dtype).eps
