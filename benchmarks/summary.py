"""What tables and sentences say of runs that differ in their seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.experiment import Curve, Row, Value
from benchmarks.seeds import Difference, Seeds

__all__ = [
    "Answer",
    "extreme",
    "failures",
    "grouped",
    "late_log_mean",
    "late_mean",
    "quoted",
    "seeds",
    "stated",
    "table",
]

Verdict = Literal["yes", "tie", "no", "not measured"]


@dataclass(frozen=True)
class Answer:
    """Whether a claim holds in one place.

    Attributes:
        verdict: "tie" where seeds do not tell.
        detail: What speaks against it, or how far.
    """

    verdict: Verdict
    detail: str = ""


def grouped(rows: Sequence[Row], *names: str) -> dict[tuple[Value, ...], list[Row]]:
    """Return rows by the values of these settings, in their order."""
    found: dict[tuple[Value, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row["settings"][name] for name in names), []).append(row)
    return dict(sorted(found.items(), key=lambda item: [(isinstance(v, str), v) for v in item[0]]))


def seeds(rows: Sequence[Row], metric: str) -> Seeds | None:
    """Return a metric of the rows that have it and did not fail; None if there are none."""
    values = tuple(row["metrics"][metric] for row in rows if "failed" not in row and metric in row["metrics"])
    return Seeds(values) if values else None


def stated(figure: Seeds | None, digits: int = 3) -> str:
    """Return mean ± standard deviation, to significant digits; a dash if there are no rows."""
    if figure is None:
        return "–"
    return f"{figure.mean:.{digits}g}" + ("" if figure.std is None else f" ± {figure.std:.2g}")


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Return a table, the first column flush left; nothing if it is empty."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return ["", *("| " + " | ".join(line) + " |" for line in lines), ""] if body else []


def failures(rows: Sequence[Row]) -> list[str]:
    """Return a line for each run that ended early."""
    return [f"- failed: `{row['command']}`: {row['failed']}" for row in rows if "failed" in row]


def extreme(figures: Mapping[str, Seeds | None], names: Sequence[str], *, highest: bool = False) -> Answer:
    """Say whether each of some figures is below (or above) every other, by more than two standard errors.

    Args:
        figures: By name; None where nothing was measured.
        names: Those that are claimed to be extreme.
        highest: Above and not below.
    """
    others = [name for name in figures if name not in names]
    worst, against = -1, []
    for name in names:
        for other in others:
            one, two = figures[name], figures[other]
            if one is None or two is None:
                return Answer("not measured")
            sign = Difference(one, two).sign * (-1 if highest else 1)
            worst = max(worst, sign)
            if sign >= 0:
                better = ("above" if highest else "below") if sign > 0 else "a tie with"
                against.append(f"{other} {better} {name}" if sign > 0 else f"{name} {better} {other}")
    return Answer({-1: "yes", 0: "tie", 1: "no"}[worst], ", ".join(against))  # type: ignore[arg-type]


def quoted(claim: str, source: str, basis: str, answers: Mapping[str, Answer]) -> str:
    """Return what a paper says, and what the rows say to that.

    Args:
        claim: The paper's words.
        source: Where they stand.
        basis: What decides.
        answers: By place; the name of a single one may be empty.
    """
    measured = {place: answer for place, answer in answers.items() if answer.verdict != "not measured"}
    missing = [place for place in answers if place not in measured]
    parts = []
    for verdict, word in (("yes", "**yes**"), ("tie", "**not decided**"), ("no", "**no**")):
        of_it = {place: answer.detail for place, answer in measured.items() if answer.verdict == verdict}
        if of_it:
            count = f" in {len(of_it)} of {len(measured)}" if len(answers) > 1 else ""
            told = [": ".join(filter(None, pair)) for pair in of_it.items() if pair[1]]
            parts.append(f"{word}{count}" + (f" ({'; '.join(told)})" if told else ""))
    if missing:
        parts.append("not measured" + (f": {'; '.join(filter(None, missing))}" if any(missing) and measured else ""))
    return f"- “{claim}” ({source}): {', '.join(parts)}. {basis}"


def late_mean(curve: Curve) -> float:
    """Return the mean of the last tenth of a curve."""
    values = _late(curve)
    return math.fsum(values) / len(values)


def late_log_mean(curve: Curve) -> float:
    """Return the log of the mean of what the last tenth of a curve has the logs of."""
    values = _late(curve)
    largest = max(values)
    if largest == -math.inf:
        return largest
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values) / len(values))


def _late(curve: Curve) -> list[float]:
    return curve["value"][-max(1, len(curve["value"]) // 10) :]
