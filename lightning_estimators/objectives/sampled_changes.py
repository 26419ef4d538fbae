"""Estimating the changes of f in all coordinates from evaluations of a few: a prediction, corrected where evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from lightning_estimators.noise import CommonNoise, uniform
from lightning_estimators.objectives.base import Objective
from lightning_estimators.objectives.coordinates import Coordinates
from lightning_estimators.objectives.sum import Sum
from lightning_estimators.objectives.systematic import systematic_draws

__all__ = ["ChangeModel", "ObservedChanges", "SampledChanges"]


@dataclass(frozen=True)
class ChangeModel:
    """A regression model that predicts changes, fitted to those of earlier calls; see `SampledChanges`.

    Attributes:
        coefficients: The coefficients a, c, d for every entry of the event, shape `(entries, 3)`.
        error: The typical absolute error of the prediction, divided by the step, for every entry, shape `(entries,)`.
        slopes: The matrix C, shape `(entries, entries)`. Row i holds the average derivatives of the gradient of f in
            entry i with respect to every other entry; zero for entries of the same variable. None if it is not known.
    """

    coefficients: Tensor
    error: Tensor
    slopes: Tensor | None = None


@dataclass(frozen=True)
class ObservedChanges:
    r"""The changes that were evaluated in one call of `SampledChanges.weighted_change`, to which a model is fitted.

    T changes were evaluated, at L points that have `entries` entries each. δ is the step of a change.

    Attributes:
        entries: The index of the entry of the event that moved (of one-hot vectors, the entry that grew most), shape
            `(T,)`.
        features: The three features $(\langle \text{move}, \nabla f \rangle / \delta,\ 1,\ \delta / 2)$ of the
            prediction, shape `(T, 3)`.
        change: The change divided by δ, shape `(T,)`.
        guess: The prediction of it, shape `(T,)`.
        weights: The squared weight of this change in the gradient, divided by how often the change is drawn on
            average, shape `(T,)`.
        importance: The squared weight in the gradient of a step in every entry, shape `(L, entries)`.
    """

    entries: Tensor
    features: Tensor
    change: Tensor
    guess: Tensor
    weights: Tensor
    importance: Tensor


@dataclass(frozen=True)
class _Steps:
    """All changes that can be evaluated: N = alternatives × coordinates at each of L points."""

    move: Tensor  # z_new - z, shape (L, N, K)
    size: Tensor  # the step δ: for scalars the move, for vectors its largest entry; shape (L, N)
    entry: Tensor  # the index, in the flattened event, of the entry whose step this is; shape (L, N)
    entries: int  # number of entries of an event

    @classmethod
    def of(cls, at: Coordinates) -> _Steps:
        points, coordinates, width = at.z.shape
        move = (at.z_new - at.z).transpose(0, 1)
        coordinate = torch.arange(coordinates, device=move.device)
        if not at.one_hot:  # each entry is a coordinate
            return cls(move[:, 0], move[:, 0, :, 0], coordinate.expand(points, -1), coordinates)
        size, largest = move.max(-1)
        flat = (points, len(at.z_new) * coordinates)
        entry = (largest + width * coordinate).reshape(flat)
        return cls(move.reshape(*flat, width), size.reshape(flat), entry, coordinates * width)

    def of_entries(self, figures: Tensor) -> Tensor:
        """Look up, for each change, the number of its entry; shape `(..., L, N)` or broadcastable to it."""
        return figures.unsqueeze(-2) if self.move.shape[-1] == 1 else figures[..., self.entry]

    def into_entries(self, figures: Tensor) -> Tensor:
        """Sum numbers of changes over all changes that belong to the same entry; shape `(L, entries)`."""
        if self.move.shape[-1] == 1:
            return figures
        return figures.new_zeros(len(figures), self.entries).scatter_add_(1, self.entry, figures)

    def slopes(self, gradient: Tensor) -> Tensor:
        """Return ⟨move, gradient⟩ / δ, shape `(L, N)`, which for scalars is the gradient.

        Args:
            gradient: Shape `(L, J, K)`.
        """
        if self.move.shape[-1] == 1:
            return gradient.squeeze(-1)
        points, coordinates, width = gradient.shape
        alternatives = self.size.shape[1] // coordinates
        along = self.move.reshape(points, alternatives, coordinates, width) * gradient.unsqueeze(1)
        return torch.where(self.size > 0, along.sum(-1).reshape(self.size.shape) / self.size, 0.0)


class SampledChanges(Objective):
    r"""The cost f with estimated changes: of each point's changes, m random ones are evaluated, the others predicted.

    For a step $\delta_i$ from $z_i$ to $z_i'$, the change $\Delta_i = f(z_i', z_{-i}) - f(z)$ is first predicted as
    $\gamma_i = a_i \delta_i\, \partial_i f(z) + c_i \delta_i + d_i \delta_i^2 / 2$, and then estimated as

    $$\hat\Delta_i = \gamma_i - a_i \delta_i\, C_i (z - E z) + \frac{n_i}{\pi_i} (\Delta_i - \gamma_i).$$

    Here $n_i$ is how often i is among the m draws. Its mean $\pi_i$ is proportional to the product of three numbers:
    the weight by which the rule multiplies the change, the step, and the typical error of the prediction divided by the
    step. Prediction and π do not depend on the draws, so the mean over draws, given z, is $\Delta_i$ minus the term
    with C, however good the prediction is. The term with C is a control variate: it removes the variance of
    $\partial_i f(z)$ that comes from the other coordinates of z. Its mean over z is zero for a rule for independent
    coordinates in which $z_i'$ and the weight depend on no coordinate but $z_i$.

    Terms of a `Sum` that have closed changes are not sampled: their changes are exact.

    Cost: for every call of `weighted_change`, m evaluations of the other terms at each point, without gradient. Terms
    that are random take one more, since f(z) must be evaluated with the same noise as at the changed points.

    Args:
        f: The cost.
        z: The points, shape `lead + event_shape`; the first axis is that of samples.
        num_changes: m.
        model: The coefficients a, c, d, the typical errors, and C.
        differentiate: Whether the prediction uses the gradient of f. If f has no gradient, it does not.
        mean: E z, of the shape of z; None to leave out the term with C.

    Attributes:
        point: z as a leaf of autograd.
        at_point: f(z), attached to the parameters of f.
        gradient: The gradient of the sampled terms at z, without a graph; zero where there is none.
        observed: The evaluated changes of each call of `weighted_change`.
    """

    def __init__(
        self,
        f: Objective,
        z: Tensor,
        num_changes: int,
        model: ChangeModel,
        *,
        differentiate: bool = True,
        mean: Tensor | None = None,
    ) -> None:
        self.f, self.event_dim, self.num_changes, self.model = f, f.event_dim, num_changes, model
        terms = f.terms if isinstance(f, Sum) else [f]
        self.closed = [term for term in terms if term.closed_changes]
        self.sampled = [term for term in terms if not term.closed_changes]
        self.observed: list[ObservedChanges] = []
        self._given, self.point, self.centred = z, z.detach(), None if mean is None else (z - mean).detach()
        self._evaluate(differentiate=differentiate)

    def value(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        return self.f.value(z)

    def coordinate_change(self, z: Tensor, z_new: Tensor) -> Tensor:
        """Return estimates of all changes, drawn as if all had the same weight."""
        return self.weighted_change(z, z_new, z.new_ones(()))

    def weighted_change(self, z: Tensor, z_new: Tensor, weights: Tensor) -> Tensor:
        """Return estimates of all changes (shapes as in `Objective.weighted_change`); z must be that of the class."""
        at = Coordinates.of(self.point.detach(), z_new, self.event_dim)
        if self.num_changes >= len(at.z_new) * at.z.shape[1]:
            return self.f.coordinate_change(z, z_new)
        parts = [term.coordinate_change(self.point, z_new) for term in self.closed]
        if self.sampled:
            with torch.no_grad():
                parts.append(self._estimated(at, weights))
        return reduce(torch.add, parts)

    def _evaluate(self, *, differentiate: bool) -> None:
        noise = CommonNoise(self.point.device)
        if differentiate and self.sampled:
            self.point.requires_grad_()
        try:
            values = [term(self.point) for term in self.sampled]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            if not self.point.requires_grad:
                raise
            # Perhaps f only refuses tensors that require a gradient, as NumPy does: try again without.
            self.point = self.point.detach()
            values = [term(self.point) for term in self.sampled]
        is_random = not noise.is_unused()
        self.at_point = reduce(torch.add, [*values, *(term(self.point) for term in self.closed)])
        gradient: Tensor | None = None
        if values and self.point.requires_grad:
            total = reduce(torch.add, values)
            if total.requires_grad:
                (gradient,) = torch.autograd.grad(total.sum(), self.point, retain_graph=True, allow_unused=True)
        # Any finite prediction leaves the estimate unbiased.
        self.gradient = torch.zeros_like(self.point) if gradient is None else gradient.nan_to_num(0.0, 0.0, 0.0)
        self._here = [None if is_random else value.detach() for value in values]

    def _estimated(self, at: Coordinates, weights: Tensor) -> Tensor:
        steps = _Steps.of(at)
        alternatives, points, coordinates, _ = at.z_new.shape
        shape = (alternatives, *at.lead, *at.coords) if at.one_hot else (*at.lead, *at.coords)
        weights = weights.detach().abs().to(at.z.dtype).expand(shape).reshape(at.z_new.shape[:3])
        weights = weights.transpose(0, 1).reshape(steps.size.shape) * steps.size.abs()

        slopes = steps.slopes(self.gradient.reshape(at.z.shape))
        a, c, d = steps.of_entries(self.model.coefficients.to(slopes.dtype).T)
        rest = c + d * (steps.size / 2)
        guess = a * slopes + rest
        error = steps.of_entries(self.model.error.to(weights.dtype))
        index, expected = systematic_draws(weights * error, self._shifts(at.lead, weights))
        often = torch.where(expected > 0, 1 / expected, 0.0)
        change = torch.where(often > 0, self._evaluated(at, weights, index).to(slopes.dtype), 0.0)

        at_z, size = guess.gather(1, index), steps.size.gather(1, index)
        if self.centred is not None and self.model.slopes is not None:
            explained = self.centred.reshape(at.z.shape).flatten(1) @ self.model.slopes.to(slopes.dtype).T
            guess = a * (slopes - steps.slopes(explained.reshape(at.z.shape))) + rest
        answer = (guess * steps.size).scatter_add(1, index, (change - at_z * size) * often)

        self.observed.append(
            ObservedChanges(
                steps.entry.gather(1, index).flatten(),
                torch.stack([slopes.gather(1, index), torch.ones_like(size), size / 2], -1).flatten(0, 1),
                torch.where(size != 0, change / size, 0.0).flatten(),
                at_z.flatten(),
                (weights.gather(1, index).square() * often).flatten(),
                steps.into_entries(weights.square()),
            )
        )
        return at.unflatten(answer.reshape(points, alternatives, coordinates).transpose(0, 1))

    def _shifts(self, lead: torch.Size, like: Tensor) -> Tensor:
        """Return random shifts for the draws at each point; those of the samples of an example are equally spaced."""
        shared = uniform((1, *lead[1:]), (), dtype=like.dtype, device=like.device)
        apart = torch.arange(lead[0], dtype=like.dtype, device=like.device) / max(1, lead[0])
        shifts = (shared + apart.reshape(-1, *(1,) * (len(lead) - 1))) % 1
        return shifts.reshape(-1, 1).expand(-1, self.num_changes)

    def _evaluated(self, at: Coordinates, weights: Tensor, index: Tensor) -> Tensor:
        """Evaluate the drawn changes; changes with weight zero are replaced by no change.

        f may not be defined where a coordinate has a value of probability zero.
        """
        alternatives, points, coordinates, _ = at.z_new.shape
        possible = (weights > 0).reshape(points, alternatives, coordinates).transpose(0, 1).unsqueeze(-1)
        z_new = torch.where(possible, at.z_new, at.z)
        z_new = z_new.reshape(alternatives, *self.point.shape) if at.one_hot else z_new.reshape(self.point.shape)
        which = (index // coordinates).T, (index % coordinates).T
        parts = zip(self.sampled, self._here, strict=True)
        return reduce(torch.add, [term.chosen_changes(self.point, z_new, which, here).T for term, here in parts])
