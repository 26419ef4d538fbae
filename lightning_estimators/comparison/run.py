"""The steps of a comparison, from candidates to a recommendation."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tqdm.auto import tqdm

from lightning_estimators.comparison.batches import Batches, data_variance
from lightning_estimators.comparison.candidates import Candidate, describe, exchanges
from lightning_estimators.comparison.exact import exact_candidate, unbiased_candidates
from lightning_estimators.comparison.figures import figures
from lightning_estimators.comparison.learning import LEARNING_RATE
from lightning_estimators.comparison.measurement import Measured, Plan, measure
from lightning_estimators.comparison.recommendation import recommend
from lightning_estimators.comparison.reference import References
from lightning_estimators.comparison.result import Comparison
from lightning_estimators.comparison.rows import Row
from lightning_estimators.comparison.subject import ModuleSubject, Subject
from lightning_estimators.estimators import GradientEstimator

__all__ = ["Options", "run"]

_EXACT_SHARE = 0.2  # of the budget, at most, to find out whether there is an exact gradient
_DATA_SHARE = 0.15  # for the variance between batches


_COUPLED = (
    "the cost of one batch element depends on the others (BatchNorm in training mode, or allow_coupled_costs), so that "
    "estimators differ in what they estimate: there is no reference, and no bias"
)

_BUSY = (
    "this process computed in {:.0%} of the time only: if other programs kept the machine busy, the times of steps are "
    "too long, those of long steps most"
)


@dataclass(frozen=True)
class Options:
    """See `compare`."""

    budget: float
    exchange: Literal["all", "each"]
    draws: int | None
    learning_steps: int
    progress: bool


def run(
    subject: Subject, estimators: Sequence[GradientEstimator] | None, options: Options, batches: Batches | None = None
) -> Comparison:
    """Compare.

    Args:
        subject: What on.
        estimators: As for `compare`.
        options: As for `compare`.
        batches: Further ones, where they come from a loader.
    """
    began = time.monotonic()
    subject.weights  # noqa: B018  as they are before anything runs
    candidates = _candidates(subject, estimators, options)
    data_share = _DATA_SHARE * options.budget if batches is not None and batches.is_loader else 0.0
    with tqdm(total=options.budget, disable=None if options.progress else True, leave=False, unit="s") as bar:
        exact = None if subject.couples else exact_candidate(subject.places)
        tried: list[Measured] = []
        interrupted = False
        if exact is not None:
            plan = Plan(_EXACT_SHARE * options.budget, 4, 0, bar)
            tried, interrupted = measure(subject, [exact], plan, first_index=1)
        references = [one for one in tried if one.candidate.refused is None and one.is_exact]
        hidden = [] if references or subject.couples else [*unbiased_candidates(subject.places)]
        if not references and exact is not None and exact.refused is None:
            hidden.append(exact)  # something else than the latents is random, such as dropout
        left = max(0.1 * options.budget, options.budget - (time.monotonic() - began) - data_share)
        plan = Plan(0.0 if interrupted else left, options.draws, options.learning_steps, bar)
        wall, computed = time.monotonic(), time.process_time()
        measured, stopped = measure(subject, [*candidates, *hidden], plan, first_index=10)
        wall, computed = time.monotonic() - wall, time.process_time() - computed
        interrupted |= stopped
        usable = [] if subject.couples else [*references, *measured]
        pool = References(usable, [*_groups(measured), "total"], subject.rounding)
        between = None
        if data_share and not interrupted and isinstance(subject, ModuleSubject) and batches is not None:
            quietest = min(pool.pool, key=lambda one: one.moments.total_variance("total"), default=None)
            try:
                between = None if quietest is None else data_variance(subject, quietest, batches, data_share)
            except KeyboardInterrupt:
                interrupted = True
    rows = [_row(subject, one, pool) for one in measured[: len(candidates)]]
    reference = pool.summary()
    return Comparison(
        rows=rows,
        reference=reference,
        recommendation=recommend(rows, reference, between),
        data_variance=between,
        seconds=time.monotonic() - began,
        learning_rate=LEARNING_RATE,
        interrupted=interrupted,
        notes=[
            *([_COUPLED] if subject.couples else []),
            *_notes(rows, [one.candidate for one in measured[: len(candidates)]], options),
            *([_BUSY.format(computed / wall)] if subject.device.type == "cpu" and computed < 0.5 * wall > 1 else []),
        ],
    )


def _candidates(subject: Subject, estimators: Sequence[GradientEstimator] | None, options: Options) -> list[Candidate]:
    places = subject.places
    own = {path: place.own for path, place in places.items() if place.own is not None}
    names = {path: describe(estimator) for path, estimator in own.items()}
    found = []
    if own:
        name = (
            names[next(iter(names))]
            if len(set(names.values())) == 1
            else ", ".join(f"{p}: {n}" for p, n in names.items())
        )
        found.append(Candidate(name, {p: copy.deepcopy(e) for p, e in own.items()}, list(own), current=True))
    for estimator in subject.known_estimators() if estimators is None else estimators:
        for candidate in exchanges(estimator, places, options.exchange, only_fitting=estimators is None):
            same = all(describe(candidate.estimators[path]) == names.get(path) for path in candidate.exchanged)
            if estimators is None and candidate.exchanged and same:
                continue  # the module has it
            found.append(candidate)
    seen: dict[str, int] = {}
    for candidate in found:
        seen[candidate.name] = seen.get(candidate.name, 0) + 1
        if seen[candidate.name] > 1:
            candidate.name += f" #{seen[candidate.name]}"
    return found


def _groups(measured: Sequence[Measured]) -> list[str]:
    return list(dict.fromkeys(name for one in measured for name in one.moments))


def _row(subject: Subject, one: Measured, pool: References) -> Row:
    candidate = one.candidate
    if candidate.refused is None and one.count < 3:
        candidate.refused = f"only {one.count} estimates could be drawn before the budget ended."
    if candidate.refused is not None:
        return Row(name=candidate.name, current=candidate.current, refused=candidate.refused, draws=one.count)
    reference = pool.of(one)
    total = figures(one, "total", reference, subject.rounding)
    seconds = statistics.median(candidate.seconds)
    return Row(
        name=candidate.name,
        current=candidate.current,
        claims_unbiased=candidate.claims_unbiased,
        step_seconds=seconds,
        peak_bytes=candidate.peak_bytes,
        evaluations=candidate.evaluations,
        work_variance=0.0 if one.is_exact else total.variance * seconds,
        draws=one.count,
        learning_steps=candidate.learning_steps,
        learning_curve=candidate.learning_curve,
        groups={name: figures(one, name, reference, subject.rounding) for name in one.moments},
        **vars(total),
    )


def _notes(rows: Sequence[Row], candidates: Sequence[Candidate], options: Options) -> list[str]:
    learners = [one for one in candidates if one.refused is None and options.learning_steps and one.learns()]
    notes = []
    if learners:
        notes.append(f"what learns had up to {options.learning_steps} steps of Adam({LEARNING_RATE}) at these weights")
    short = [one for one in learners if one.learning_steps < options.learning_steps]
    if short:
        had = ", ".join(f"{one.name} {one.learning_steps}" for one in short)
        notes.append(f"the budget cut learning short: {had} steps; a larger one may favour them")
    poor = [row.name for row in rows if row.refused is None and row.variance_error > 0.3 * row.variance > 0]
    if poor:
        notes.append(f"variances that are known to no better than 30 %: {', '.join(poor)}; raise the budget")
    if rows and all(math.isnan(row.variance) for row in rows):
        notes.append("no candidate could be measured")
    return notes
