"""Exact gradients where there are any: small supports, and costs whose expectation has a closed form."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Normal, OneHotCategorical

from lightning_estimators.baselines import LeaveOneOut
from lightning_estimators.comparison.candidates import Candidate, Place
from lightning_estimators.comparison.combined_score import CombinedScore
from lightning_estimators.distributions import as_one_hot, base_distribution, distribution_parameters, probabilities
from lightning_estimators.estimators import (
    REINFORCE,
    Enumeration,
    Estimate,
    GradientEstimator,
    Pathwise,
    StochasticBackprop,
)
from lightning_estimators.estimators.combined import averages_costs
from lightning_estimators.objectives import Objective

__all__ = ["ClosedForm", "exact_candidate", "unbiased_candidates"]

MOST_POINTS = 2**18
"""Most evaluations of f for a batch at once by which a support is enumerated."""


class ClosedForm(GradientEstimator):
    r"""Computes $E[f(z)]$ exactly for costs that say that they are linear or quadratic in z.

    Linear in every coordinate (`Objective.degree` 1), coordinates independent: $f(E z)$. Normal z and a quadratic f:
    $f(\mu) + \frac12 \sum_j [f(\mu + \sigma_j e_j) + f(\mu - \sigma_j e_j) - 2 f(\mu)]$.

    Requirements: an objective that knows its degree. Cost: one evaluation of f, or 2 D + 1 in D coordinates.

    Raises:
        ValueError: f is no such cost.

    Example:
        >>> from torch.distributions import Independent
        >>> from lightning_estimators.objectives import SquaredCost
        >>> loc = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> q = Independent(Normal(loc, torch.ones(2)), 1)
        >>> ClosedForm()(q, SquaredCost(torch.zeros(2))).item()  # 1 + 1 + 4 + 1
        7.0
    """

    families: ClassVar[tuple[type[Distribution], ...]] = (Bernoulli, OneHotCategorical, Normal)

    def is_unbiased(self, q: Distribution) -> bool:
        """It is exact."""
        return True

    def is_pathwise(self, q: Distribution) -> bool:
        """The value carries the gradient."""
        return True

    def evaluations(self, q: Distribution) -> tuple[int, int]:
        """Return those of the quadratic case."""
        return 2 * q.event_shape.numel() + 1, 0

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Return the closed form."""
        base = base_distribution(q)
        if f.degree is not None and f.degree <= 1:
            return Estimate(f(base.mean if isinstance(base, Normal) else probabilities(q)))
        if f.degree != 2 or not isinstance(base, Normal):
            raise ValueError("the cost has no closed form: expected an objective of degree 1, or 2 for normal z.")
        mean, size = base.mean, q.event_shape.numel()
        steps = torch.diag_embed(base.stddev.flatten(mean.ndim - len(q.event_shape))) if size else mean
        steps = steps.movedim(-2, 0).reshape(size, *mean.shape)
        middle = f(mean)
        _check_quadratic(f, mean, base.stddev)
        return Estimate(middle + 0.5 * (f(mean + steps) + f(mean - steps) - 2 * middle).sum(0))


def _check_quadratic(f: Objective, mean: Tensor, scale: Tensor) -> None:
    """Refuse costs that are quadratic in every coordinate, but not in all of them together."""
    with torch.no_grad():
        u, v, w = (scale * torch.randn_like(mean) for _ in range(3))
        corners = torch.stack([mean, mean + u + v, mean + u + w, mean + v + w])
        opposite = torch.stack([mean + u, mean + v, mean + w, mean + u + v + w])
        values, others = f(corners), f(opposite)
        third = (values.sum(0) - others.sum(0)).abs()
        if bool((third > 1e-3 * (values.abs().sum(0) + others.abs().sum(0))).any()):
            raise ValueError("the cost has no closed form: it is not quadratic in all coordinates together.")


def exact_candidate(places: Mapping[str, Place]) -> Candidate | None:
    """Return a candidate that is exact at every place, if its cost allows.

    None where a support is too large, or where the objective is another one than the mean of the costs of samples.
    """
    points = 1
    chosen: dict[str, GradientEstimator] = {}
    for path, place in places.items():
        if place.own is not None and not averages_costs(place.own):
            return None
        closed = isinstance(base_distribution(place.q), Normal)
        made: GradientEstimator = ClosedForm() if closed else Enumeration(MOST_POINTS)
        try:
            made.prepare(place.q, place.context)
        except (TypeError, ValueError):
            if not isinstance(base_distribution(as_one_hot(place.q)), ClosedForm.families):
                return None
            made = ClosedForm()
        if isinstance(made, Enumeration):
            points *= made.evaluations(place.q)[0]
        chosen[path] = made
    batch = max((place.q.batch_shape.numel() for place in places.values()), default=1)
    if points * batch > MOST_POINTS:
        chosen = {path: ClosedForm() if isinstance(made, Enumeration) else made for path, made in chosen.items()}
    return _candidate("exact", chosen, places)


def unbiased_candidates(places: Mapping[str, Place]) -> list[Candidate]:
    """Return two candidates of low variance that are unbiased and of different classes, to be a reference."""
    found: list[Candidate] = []
    for makers in ((Pathwise, StochasticBackprop, _leave_one_out), (_leave_one_out,)):
        chosen: dict[str, GradientEstimator] = {}
        for path, place in places.items():
            own = place.own
            of_own = () if own is None or averages_costs(own) else (functools.partial(CombinedScore, own),)
            for make in of_own or makers:
                try:
                    made = make()
                    made.prepare(place.q, place.context)
                except (TypeError, ValueError):
                    continue
                chosen[path] = made
                break
        if len(chosen) == len(places):
            found.append(_candidate("reference", chosen, places))
    return found


def _leave_one_out() -> GradientEstimator:
    return REINFORCE(LeaveOneOut(), num_samples=4)


def _candidate(name: str, chosen: Mapping[str, GradientEstimator], places: Mapping[str, Place]) -> Candidate:
    for path, estimator in chosen.items():
        parameter = next(iter(distribution_parameters(places[path].q).values()))
        estimator.to(parameter.device)
        own = places[path].own
        estimator.allow_coupled_costs = own is not None and own.allow_coupled_costs
    return Candidate(
        f"{name} ({', '.join(dict.fromkeys(type(e).__name__ for e in chosen.values()))})", dict(chosen), list(chosen)
    )
