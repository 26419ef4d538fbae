"""A cost that estimates its coordinate changes from a few of them: a guess, corrected where it was checked."""

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
    """What is known of changes from earlier calls, by entry of the event; see `SampledChanges`.

    Attributes:
        coefficients: a, c, d of every entry, shape `(entries, 3)`.
        error: Usual size of the error of a guess over the step, shape `(entries,)`.
        slopes: How the gradient of f in one entry depends on another one, in the mean, shape `(entries, entries)`: row
            i is that of the gradient in entry i, zero where the other is of the same variable. None for not known.
    """

    coefficients: Tensor
    error: Tensor
    slopes: Tensor | None = None


@dataclass(frozen=True)
class ObservedChanges:
    r"""What one question told about changes: T that were evaluated, of L points with `entries` each.

    Attributes:
        entries: Which entry of the event moved (of vectors: the one that grew most), shape `(T,)`.
        features: $(\langle \delta, \nabla f \rangle / \delta,\ 1,\ \delta / 2)$, δ the step, shape `(T, 3)`.
        change: Change over step, shape `(T,)`.
        guess: What it was guessed to be, shape `(T,)`.
        weights: Of the step in the gradient, squared, over how often this one is drawn in the mean, shape `(T,)`.
        importance: Of every entry's step in the gradient, squared, shape `(L, entries)`.
    """

    entries: Tensor
    features: Tensor
    change: Tensor
    guess: Tensor
    weights: Tensor
    importance: Tensor


@dataclass(frozen=True)
class _Steps:
    """Changes in question, N of each of L points: alternatives times coordinates."""

    move: Tensor  # shape (L, N, K); z_new - z
    size: Tensor  # δ: of scalars the move, of vectors its largest entry; shape (L, N)
    entry: Tensor  # which entry of the flattened event that is, shape (L, N)
    entries: int  # of an event

    @classmethod
    def of(cls, at: Coordinates) -> _Steps:
        points, coordinates, width = at.z.shape
        move = (at.z_new - at.z).transpose(0, 1)
        coordinate = torch.arange(coordinates, device=move.device)
        if not at.one_hot:  # entries are coordinates
            return cls(move[:, 0], move[:, 0, :, 0], coordinate.expand(points, -1), coordinates)
        size, largest = move.max(-1)
        flat = (points, len(at.z_new) * coordinates)
        entry = (largest + width * coordinate).reshape(flat)
        return cls(move.reshape(*flat, width), size.reshape(flat), entry, coordinates * width)

    def of_entries(self, figures: Tensor) -> Tensor:
        """Return what belongs to each change, shape `(..., L, N)` or broadcastable, of one figure for each entry."""
        return figures.unsqueeze(-2) if self.move.shape[-1] == 1 else figures[..., self.entry]

    def into_entries(self, figures: Tensor) -> Tensor:
        """Return sums over the changes of each entry, shape `(L, entries)`, of one figure for each change."""
        if self.move.shape[-1] == 1:
            return figures
        return figures.new_zeros(len(figures), self.entries).scatter_add_(1, self.entry, figures)

    def slopes(self, gradient: Tensor) -> Tensor:
        """Return ⟨move, gradient⟩ / δ, shape `(L, N)`: of scalars the gradient.

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
    r"""f, its changes estimated from m evaluations for each point, at a point z where it is evaluated with gradient.

    With steps $\delta_i$ from $z_i$ to $z_i'$, the change $\Delta_i = f(z_i', z_{-i}) - f(z)$ is first guessed,
    $\gamma_i = a_i \delta_i\, \partial_i f(z) + c_i \delta_i + d_i \delta_i^2 / 2$, and answered as

    $$\hat\Delta_i = \gamma_i - a_i \delta_i\, C_i (z - E z) + \frac{n_i}{\pi_i} (\Delta_i - \gamma_i),$$

    where $n_i$ is how often i is among the m draws, and $\pi_i = E[n_i]$ is proportional to the weight with which the
    rule uses the change, times the step, times the usual error of the guess over the step. Guess and π do not depend on
    the draws, so that given z the mean over draws is $\Delta_i$, whatever they are, but for the term with C. That takes
    out what the gradient owes to the other coordinates of z. Its mean over z is zero in a rule for independent
    coordinates in which $z_i'$ and the weight depend on no other coordinate than $z_i$.

    Terms of a `Sum` with closed changes answer exactly.

    Cost: m evaluations of the other terms for each point and question, at changed points, without gradient; of those
    that draw noise of their own one more, under the noise of the changed points.

    Args:
        f: The cost.
        z: The point, shape `lead + event_shape`, the first axis that of samples.
        num_changes: m.
        model: a, c, d, the usual errors, and C.
        differentiate: Whether the guess uses the gradient of f; where f has none it does without.
        mean: E z, shape of z; None leaves the term with C out.

    Attributes:
        point: z, as a leaf of autograd.
        at_point: f(z), attached to whatever else f depends on.
        gradient: ∇f(z) of the terms that are sampled, as numbers; zero where f has none.
        observed: What each question told.
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
        """Return estimates of all changes, taken to be equally important."""
        return self.weighted_change(z, z_new, z.new_ones(()))

    def weighted_change(self, z: Tensor, z_new: Tensor, weights: Tensor) -> Tensor:
        """Return estimates of all changes (shapes as in `Objective.weighted_change`); z must be the point."""
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
            # f may work where z needs no gradient: NumPy, say, refuses tensors that do.
            self.point = self.point.detach()
            values = [term(self.point) for term in self.sampled]
        is_random = not noise.is_unused()
        self.at_point = reduce(torch.add, [*values, *(term(self.point) for term in self.closed)])
        gradient: Tensor | None = None
        if values and self.point.requires_grad:
            total = reduce(torch.add, values)
            if total.requires_grad:
                (gradient,) = torch.autograd.grad(total.sum(), self.point, retain_graph=True, allow_unused=True)
        # The guess may be anything that is finite.
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
        """Return the shifts of m draws for each point; those of the samples of one example are evenly apart."""
        shared = uniform((1, *lead[1:]), (), dtype=like.dtype, device=like.device)
        apart = torch.arange(lead[0], dtype=like.dtype, device=like.device) / max(1, lead[0])
        shifts = (shared + apart.reshape(-1, *(1,) * (len(lead) - 1))) % 1
        return shifts.reshape(-1, 1).expand(-1, self.num_changes)

    def _evaluated(self, at: Coordinates, weights: Tensor, index: Tensor) -> Tensor:
        """Return the drawn changes. Where nothing can be drawn nothing moves, since f may not be defined there."""
        alternatives, points, coordinates, _ = at.z_new.shape
        possible = (weights > 0).reshape(points, alternatives, coordinates).transpose(0, 1).unsqueeze(-1)
        z_new = torch.where(possible, at.z_new, at.z)
        z_new = z_new.reshape(alternatives, *self.point.shape) if at.one_hot else z_new.reshape(self.point.shape)
        which = (index // coordinates).T, (index % coordinates).T
        parts = zip(self.sampled, self._here, strict=True)
        return reduce(torch.add, [term.chosen_changes(self.point, z_new, which, here).T for term, here in parts])
