"""Drawing estimates: every candidate in turn, then where the errors are largest, until the budget ends."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from lightning_estimators.comparison.candidates import Candidate, in_one_line
from lightning_estimators.comparison.learning import learn
from lightning_estimators.comparison.limits import TooSlowError, peak_bytes, time_limit
from lightning_estimators.comparison.subject import Subject
from lightning_estimators.moment_errors import MomentsWithErrors

__all__ = ["Measured", "Plan", "measure"]

_FIRST = 10  # draws of every candidate before errors decide
_FEWEST = 4  # of which a variance and its error can be told
_LEARNING_SHARE = 0.35  # of the budget, for all that learn
_LEARNED, _DRAWN = 0.6, 0.9  # of an equal share of what is left: when learning ends, and the first draws
_PATIENCE = 3.0  # equal shares of the budget that one candidate may take


@dataclass(frozen=True)
class Plan:
    """How much is to be drawn.

    Attributes:
        budget: Seconds.
        draws: Of every candidate, or None for as many as the budget allows.
        learning_steps: For candidates that learn.
        bar: A progress bar in seconds, with a method `update`.
    """

    budget: float
    draws: int | None
    learning_steps: int
    bar: Any


class Measured:
    """A candidate, its moments, and what it takes to draw from it."""

    def __init__(self, subject: Subject, candidate: Candidate, index: int) -> None:
        self.subject, self.candidate, self.index = subject, candidate, index
        self.moments = MomentsWithErrors({"total": subject.totals()})
        self.count = 0
        self._restore = subject.session(*candidate.estimators.values())

    @property
    def relative_error(self) -> float:
        """Of the variance; 0 where there is none."""
        variance, error = self.moments.total_variance("total"), self.moments.variance_error("total")
        # Few draws may look alike by chance, and would then get no more.
        return 0.0 if self.is_exact else max(error / variance if variance > 0 else 0.0, 0.5 / math.sqrt(self.count))

    @property
    def is_exact(self) -> bool:
        """Whether all draws were the same, to rounding, and not 0, which draws also are that miss what is rare."""
        variance = self.moments.total_variance("total")
        square = sum(float(self.moments.mean(part).square().sum()) for part in self.moments.parts("total"))
        return self.count > 2 and square > 0 and variance <= self.subject.rounding**2 * square

    def warm_up(self) -> None:
        """Draw once without keeping it, since first calls also compile and check; find out the memory of a second."""
        estimators = self.candidate.estimators.values()
        states = [copy.deepcopy(estimator.state_dict()) for estimator in estimators]
        self._restore = self.subject.session()  # what a first call finds out about f is kept
        self._draw(0)
        for estimator, state in zip(estimators, states, strict=True):
            estimator.load_state_dict(state)
        self.begin()
        self.candidate.peak_bytes = peak_bytes(lambda: self._draw(0), self.subject.device)

    def begin(self) -> None:
        """Take the state that the candidate is in now as the one in which every draw finds it."""
        self._restore = self.subject.session(*self.candidate.estimators.values())

    def put_back(self) -> None:
        """Undo what a draw that was interrupted has left behind."""
        self._restore()

    def draw(self) -> None:
        """Draw once."""
        drawn = self._draw(self.count)
        self.moments.add(drawn.gradients)
        self.candidate.seconds.append(drawn.seconds)
        self.count += 1

    def _draw(self, k: int) -> Any:
        # Gradients of what is learned are computed, as in training, and not used.
        candidate = self.candidate
        return self.subject.draw(candidate.estimators, (self.index, 2, k), self._restore, candidate.parameters())


def measure(
    subject: Subject, candidates: Sequence[Candidate], plan: Plan, *, first_index: int
) -> tuple[list[Measured], bool]:
    """Measure candidates, each at its own risk.

    Args:
        subject: What they are measured on.
        candidates: Those with `refused` are passed over; others get `refused` if they fail.
        plan: How much is to be drawn.
        first_index: Of the noise of the first candidate; that of others is counted on from there.

    Returns:
        What was measured, one for each candidate, and whether it was interrupted from the keyboard.
    """
    measured = [Measured(subject, candidate, first_index + index) for index, candidate in enumerate(candidates)]
    turns = _Turns(subject, [one for one in measured if one.candidate.refused is None], plan)
    try:
        turns.all_in_turn()
        turns.where_errors_are_largest()
    except KeyboardInterrupt:
        for one in turns.not_begun():
            one.candidate.refused = "interrupted before its turn came."
        return measured, True
    finally:
        subject.weights.restore()
    return measured, False


class _Turns:
    def __init__(self, subject: Subject, measured: Sequence[Measured], plan: Plan) -> None:
        self.subject, self.plan = subject, plan
        self.measured = list(measured)
        self.began = time.monotonic()
        self.deadline = self.began + plan.budget
        self.shown = 0.0
        self.learners = sum(one.candidate.learns() for one in self.measured)
        self.share = 0.0  # seconds of the turn that began last, if all that wait get as much

    def not_begun(self) -> list[Measured]:
        return [one for one in self.measured if one.candidate.refused is None and one.count == 0]

    def all_in_turn(self) -> None:
        # Those that learn come last, and share what the others have left, so that nobody waits in vain.
        order = sorted(self.measured, key=lambda one: one.candidate.learns())
        for turn, one in enumerate(order):
            left = self.deadline - time.monotonic()
            waiting = len(order) - turn - 1
            self.share = left / (waiting + 1)
            self._turn(one, self._first, min(_PATIENCE * self.share, left / 2 if waiting else left))

    def where_errors_are_largest(self) -> None:
        block = self.plan.budget / 200
        while (left := self.deadline - time.monotonic()) > 0:
            most = _PATIENCE * self.plan.budget / max(1, len(self.measured))
            open_ones = [one for one in self.measured if self._wants_more(one, most)]
            if not open_ones:
                return
            if self.plan.draws is None:
                # More draws lower the square of an error in proportion to it, and to one over the time spent so far.
                one = max(open_ones, key=lambda one: one.relative_error**2 / one.candidate.spent)
            else:
                one = min(open_ones, key=lambda one: one.count)
            self._turn(one, lambda one: self._draws(one, time.monotonic() + block), left)

    def _wants_more(self, one: Measured, most: float) -> bool:
        if one.candidate.refused is not None or one.count == 0:
            return False
        if self.plan.draws is not None:
            return one.count < self.plan.draws
        return one.candidate.spent < most and one.relative_error > 0

    def _turn(self, one: Measured, act: Any, seconds: float) -> None:
        """Let a candidate do something for so long; whatever goes wrong is its own fault."""
        candidate, start = one.candidate, time.monotonic()
        try:
            if seconds <= 0:
                raise TimeoutError("the budget ended before its turn came.")
            with time_limit(seconds):
                # With context variables of its own: the alarm may keep a block from setting its own back.
                copy_context().run(act, one)
        except (Exception, SystemExit) as error:
            one.put_back()
            if one.count < _FEWEST or not isinstance(error, TooSlowError):  # the budget may end during a draw
                candidate.refused = in_one_line(error)
        changed = self.subject.weights.restore()
        if changed:
            candidate.refused = f"it changed the module it was called in: {', '.join(changed[:3])}."
        candidate.spent += time.monotonic() - start
        self._show(candidate)

    def _first(self, one: Measured) -> None:
        began = time.monotonic()
        one.candidate.ask(self.subject.places)
        one.warm_up()
        if one.candidate.learns() and self.plan.learning_steps:
            end = time.monotonic() + _LEARNING_SHARE * self.plan.budget / self.learners
            end = min(end, began + _LEARNED * self.share)
            learn(self.subject, one.candidate, one.index, self.plan.learning_steps, end)
        one.begin()
        self._draws(one, began + _DRAWN * self.share, _FIRST, _FEWEST)

    def _draws(self, one: Measured, deadline: float, count: float = math.inf, fewest: int = 1) -> None:
        if self.plan.draws is not None:
            count = min(count, self.plan.draws - one.count)
        drawn = 0
        while drawn < count and (drawn < fewest or time.monotonic() < deadline):
            one.draw()
            drawn += 1

    def _show(self, candidate: Candidate) -> None:
        elapsed = min(time.monotonic() - self.began, self.plan.budget)
        self.plan.bar.set_postfix_str(candidate.name, refresh=False)
        self.plan.bar.update(elapsed - self.shown)
        self.shown = elapsed
