"""Compare estimators over seeds, and answer claims about them: every answer in RESULTS.md is computed here."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from benchmarks.experiment import Row, Value

__all__ = [
    "Answer",
    "Claim",
    "Difference",
    "Finding",
    "Judge",
    "Metric",
    "Seeds",
    "State",
    "ahead",
    "answer",
    "decided",
    "extreme",
    "grouped",
    "mean_of",
    "of_estimator",
    "seeds",
    "stated",
    "table",
]

State = Literal["holds", "smaller than claimed", "tie", "does not hold", "not run"]

Metric = str | Callable[[Row], float | None]
"""A figure of a row: the name of one of its metrics, or a function that computes it."""

Judge = Callable[[Sequence[Row]], Iterable["Finding"]]
"""Returns the findings on a claim, given any rows of the experiment, also none."""


@dataclass(frozen=True)
class Seeds:
    """One metric of runs that differ in their seed only."""

    values: tuple[float, ...]  # one for each seed, at least one

    @property
    def n(self) -> int:
        """Number of seeds."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return sum(self.values) / self.n

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None for a single seed."""
        if self.n == 1:
            return None
        return statistics.stdev(self.values) if all(map(math.isfinite, self.values)) else math.nan

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.std is None else f" ± {self.std:.2f}")


ONE_SEED = 0.25
"""Nats by which two single runs must differ; the seeds of Echraibi et al. (2020), Table 1, spread by 0.04 to 0.84."""


@dataclass(frozen=True)
class Difference:
    """The mean of `one` over seeds minus that of `other`, and whether it is more than chance."""

    one: Seeds
    other: Seeds

    @property
    def value(self) -> float:
        """Mean of `one` minus mean of `other`."""
        return self.one.mean - self.other.mean

    @property
    def error(self) -> float | None:
        """Standard error of the difference; None if either side has a single seed."""
        if self.one.std is None or self.other.std is None:
            return None
        return math.sqrt(self.one.std**2 / self.one.n + self.other.std**2 / self.other.n)

    @property
    def sign(self) -> int:
        """1 if `one` is higher, -1 if it is lower, 0 for a tie or where a figure is not finite.

        A difference of less than two standard errors is a tie. Where one side has a single seed, that side is assumed
        to spread like the other, and differences below `ONE_SEED` are ties in any case.
        """
        spread = self.one.std or self.other.std or 0.0
        single = max(ONE_SEED, 2 * spread * math.sqrt(1 / self.one.n + 1 / self.other.n))
        least = single if self.error is None else 2 * self.error
        if not math.isfinite(self.value) or abs(self.value) < least:
            return 0
        return (self.value > 0) - (self.value < 0)

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return "not finite"
        return f"{self.value:+.2f}" + ("*" if self.error is None else f" ± {self.error:.2f}")


@dataclass(frozen=True)
class Finding:
    """What the rows say about a claim in one setting."""

    setting: str  # model, data and budget
    comparison: str  # what is compared there
    state: State  # whether the claim holds; a tie decides nothing
    text: str = ""  # the figures that decide
    one_seed: bool = False  # whether some of the figures come from a single seed
    differences: Mapping[str, float] = field(default_factory=dict)  # between the compared estimators, by metric


@dataclass(frozen=True)
class Claim:
    """A statement of a paper, or of ours, as a question that the rows answer."""

    question: str  # as a reader would ask it
    statement: str  # what is claimed
    source: str | None  # paper and section; None for an expectation of our own
    judge: Judge
    reading: Callable[[Sequence[Finding]], str] | None = None  # the findings in a sentence; None for their ranges
    denied: bool = False  # whether the claim is that the answer to the question is "no"


class Answer(NamedTuple):
    """The answer to the question of a claim: yes or no and how often, and the figures that it rests on."""

    short: str
    evidence: str


def answer(claim: Claim, findings: Sequence[Finding]) -> Answer:
    """Sum up the findings on a claim."""
    run = [finding for finding in findings if finding.state != "not run"]
    if not run:
        return Answer("Not run", "")
    counts = Counter(finding.state for finding in run)
    yes, no = ("No", "Yes") if claim.denied else ("Yes", "No")
    wanted: State = "does not hold" if claim.denied else "holds"
    if len(counts) == 1:
        words = {"holds": yes, "smaller than claimed": "Less than claimed", "tie": "Undecided", "does not hold": no}
        short = words[run[0].state]
    elif counts[wanted] or counts["smaller than claimed"]:
        short = f"Yes in {counts[wanted]} of {len(run)} comparisons"
    else:
        short = "No"
    verbs: dict[State, str] = {
        "holds": "holds in",
        "smaller than claimed": "is smaller than claimed in",
        "tie": "is undecided (a tie) in",
        "does not hold": "does not hold in",
    }
    parts = [f"{verb} {counts[state]}" for state, verb in verbs.items() if counts[state]]
    tally = f"of {len(run)} comparisons, the claim {', '.join(parts)}" if len(counts) > 1 else ""
    single = sum(finding.one_seed for finding in run)
    seeded = f"{single} of {len(run)} comparisons rest on one seed" if single else ""
    read = (claim.reading or _ranges)(run)
    # A capital letter where a sentence begins with a word, and not with a symbol as in "t = 0.45".
    sentences = [(s[0].upper() + s[1:] if s[:2].isalpha() else s) + "." for s in (read, tally, seeded) if s]
    return Answer(short, " ".join(sentences))


def _ranges(findings: Sequence[Finding]) -> str:
    """Return the smallest and the largest difference of each metric, or the texts where there are none."""
    parts = []
    for name in findings[0].differences:
        values = [finding.differences[name] for finding in findings]
        parts.append(f"{name} {min(values):+.2f}" + (f" to {max(values):+.2f}" if len(values) > 1 else ""))
    if parts:
        compared = {finding.comparison for finding in findings}
        return f"{compared.pop() if len(compared) == 1 else 'differences'}: {', '.join(parts)}"
    return "; ".join(": ".join(filter(None, (f.setting, f.text))) for f in findings if f.text)


def decided(signs: Sequence[int]) -> State:
    """Return whether a claim of several parts holds, by the signs of the differences in its favour."""
    return "does not hold" if min(signs) < 0 else "holds" if min(signs) > 0 else "tie"


def ahead(
    names: Sequence[str],
    rivals: Sequence[str],
    metrics: Mapping[str, Metric],
    *,
    by: Sequence[str] = (),
    highest: bool = False,
) -> Judge:
    """Return a judge of whether estimators have the lowest (or highest) figure of all.

    Args:
        names: The estimators that are claimed to be ahead.
        rivals: The others.
        metrics: What is compared, by the name of the setting, in which `{}` stands for the values of `by`.
        by: The settings, such as the number of variables, for each value of which the claim is judged.
        highest: Whether high figures are good.
    """

    def judge(rows: Sequence[Row]) -> Iterator[Finding]:
        for place, part in grouped(rows, *by).items():
            for label, metric in metrics.items():
                figures = {name: seeds(of_estimator(part, name), metric) for name in (*names, *rivals)}
                state, text = extreme(figures, names, highest=highest)
                yield Finding(label.format(*place), ", ".join(names), state, text)

    return judge


def extreme(figures: Mapping[str, Seeds | None], names: Sequence[str], *, highest: bool = False) -> tuple[State, str]:
    """Judge whether some figures are below (or above) every other one; return the figures, and what speaks against it.

    Args:
        figures: By the name of the estimator; None where it was not run.
        names: The estimators that are claimed to be extreme.
        highest: Whether "extreme" is above the others, and not below.
    """
    others = [name for name in figures if name not in names]
    signs, against = [-1], []
    for name in names:
        for other in others:
            one, two = figures[name], figures[other]
            if one is None or two is None:
                return "not run", ""
            signs.append(Difference(one, two).sign * (-1 if highest else 1))
            if signs[-1] > 0:
                against.append(f"{other} is {'above' if highest else 'below'} {name}")
            elif signs[-1] == 0:
                against.append(f"{name} ties with {other}")
    rivals = sorted((figure.mean, name) for name in others if (figure := figures[name]))
    told = [f"{name} {stated(figures[name])}" for name in names]
    if rivals:
        _, nearest = rivals[-1 if highest else 0]
        told.append(f"of the others best {nearest} {stated(figures[nearest])}")
    return decided([-sign for sign in signs]), ", ".join(told) + (f" ({', '.join(against)})" if against else "")


def grouped(rows: Sequence[Row], *names: str) -> dict[tuple[Value, ...], list[Row]]:
    """Return rows by the values of these settings, sorted by them."""
    found: dict[tuple[Value, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row["settings"][name] for name in names), []).append(row)
    return dict(sorted(found.items(), key=lambda item: [(isinstance(v, str), v) for v in item[0]]))


def of_estimator(rows: Sequence[Row], name: str) -> list[Row]:
    """Return the rows of one estimator."""
    return [row for row in rows if row["settings"]["estimator"] == name]


def mean_of(curve: str) -> Callable[[Row], float | None]:
    """Return the metric that is the mean over a curve."""

    def metric(row: Row) -> float | None:
        values = row["curves"][curve]["value"] if curve in row["curves"] else []
        return math.fsum(values) / len(values) if values else None

    return metric


def seeds(rows: Sequence[Row], metric: Metric) -> Seeds | None:
    """Return a metric of the rows that have it and did not fail; None if there are none."""
    figure = metric if callable(metric) else lambda row: row["metrics"].get(metric)
    values = [figure(row) for row in rows if "failed" not in row]
    known = tuple(value for value in values if value is not None)
    return Seeds(known) if known else None


def stated(figure: Seeds | None, digits: int = 3) -> str:
    """Return mean ± standard deviation, to significant digits; a dash if there is no row."""
    if figure is None:
        return "–"
    return f"{figure.mean:.{digits}g}" + ("" if figure.std is None else f" ± {figure.std:.2g}")


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table, the first column flush left; nothing if it has no rows."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return ["", *("| " + " | ".join(line) + " |" for line in lines), ""] if body else []
