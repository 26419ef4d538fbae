"""What the papers claim of discrete latents, judged by the rows: every verdict and its figures are computed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Literal

from benchmarks.experiments.discrete_tables import Entry, Table, name_of
from benchmarks.published import PUBLISHED, differences
from benchmarks.seeds import Difference

__all__ = ["CLAIMS", "Claim", "Verdict", "answer"]

State = Literal["holds", "less than stated", "does not hold", "tie", "not yet run"]

EXACT: Entry = ("StochasticBackprop", 1)
REBAR, RELAX, RELAXED, CONCRETE = (("REBAR", 1), ("RELAX", 1), ("RelaxedREBAR", 1), ("Concrete", 1))
LABELS = {
    "train_elbo": "train ELBO",
    "test_bound": "test bound",
    "log_variance_encoder": "fresh log-variance",
    "log_variance_encoder_adam": "log-variance by Adam's moments",
}
FRESH, ADAM = "log_variance_encoder", "log_variance_encoder_adam"


@dataclass(frozen=True)
class Verdict:
    """What the rows say of a claim in one place.

    Attributes:
        where: Table and what is compared.
        state: Whether the claim holds there, or with a smaller difference than it states; a tie decides nothing.
        text: The figures.
        one_seed: Whether some of them are of one seed, so that the state may be chance.
        apart: By how much what is compared differs, by the name of the figure.
    """

    where: str
    state: State
    text: str
    one_seed: bool = False
    apart: Mapping[str, float] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """One sentence."""
        return f"- {self.where}: **{self.state}{' (one seed)' if self.one_seed else ''}**: {self.text}."


@dataclass(frozen=True)
class Claim:
    """Something that a paper says, or a question about it.

    Attributes:
        statement: In one sentence.
        judge: Returns verdicts on any set of tables.
        source: Of the statement; None if it is our own expectation.
    """

    statement: str
    judge: Callable[[Sequence[Table]], Iterator[Verdict]]
    source: str | None


def answer(verdicts: Sequence[Verdict]) -> str:
    """Return in one sentence what all verdicts on a claim come to."""
    run = [verdict for verdict in verdicts if verdict.state != "not yet run"]
    if not run:
        return "not yet run"
    counts = Counter(verdict.state for verdict in run)
    agreed: dict[State, str] = {
        "holds": "yes",
        "less than stated": "less than stated",
        "does not hold": "no",
        "tie": "a tie",
    }
    some = counts["holds"] + counts["less than stated"] > 0
    short = agreed[run[0].state] if len(counts) == 1 else "in part" if some else "no"
    parts = [f"{state} in {counts[state]} of {len(run)}" for state in agreed if counts[state]]
    single = sum(verdict.one_seed for verdict in run)
    of_one = f" ({single} of one seed)" if single else ""
    ranges = []
    for name in run[0].apart:
        values = [verdict.apart[name] for verdict in run]
        ranges.append(f"{name} differs by {min(values):+.2f} to {max(values):+.2f}")
    return f"**{short}**: {', '.join(parts)}{of_one}; {', '.join(ranges)}"


def _relaxed(tables: Sequence[Table]) -> Iterator[Verdict]:
    for table in tables:
        yield _compare(table, RELAXED, REBAR, {"train_elbo": 1, FRESH: -1})


def _worse(tables: Sequence[Table]) -> Iterator[Verdict]:
    for table in tables:
        if table.model.startswith("bernoulli"):
            yield _compare(table, RELAX, REBAR, {"train_elbo": -1})


def _variance(tables: Sequence[Table]) -> Iterator[Verdict]:
    stated = {"bernoulli_linear": 2.0, "bernoulli_two_layer": 2.0, "categorical_nonlinear": 1.0}
    for table in tables:
        others = [REBAR, RELAX, RELAXED, *([CONCRETE] if table.model.startswith("categorical") else [])]
        for other in others if table.model in stated else []:
            verdict = _sized(table, EXACT, other, ADAM, -stated[table.model])
            fresh = table.difference(EXACT, other, FRESH)
            extra = "" if fresh is None else f"; {LABELS[FRESH]} {fresh}"
            yield replace(verdict, text=verdict.text + extra)


def _samples_bound(tables: Sequence[Table]) -> Iterator[Verdict]:
    for table in tables:
        for samples in _samples(table):
            verdict = _compare(table, EXACT, (EXACT[0], samples), {"test_bound": 1})
            yield replace(verdict, state="holds") if verdict.state == "tie" else verdict


def _samples_variance(tables: Sequence[Table]) -> Iterator[Verdict]:
    for table in tables:
        for samples in _samples(table):
            several = (EXACT[0], samples)
            change = table.difference(several, EXACT, FRESH)
            where = _where(table, several, EXACT)
            if change is None:
                yield Verdict(where, "not yet run", table.absent(several, EXACT))
                continue
            off = abs(change.value + math.log(samples))
            fits = off <= max(0.25, 2 * (change.error or 0.0))
            state: State = "tie" if not math.isfinite(off) else "holds" if fits else "does not hold"
            text = f"{LABELS[FRESH]} {change}, expected {-math.log(samples):+.2f}"
            yield Verdict(where, state, text, change.error is None, {LABELS[FRESH]: change.value})


def _samples(table: Table) -> list[int]:
    return [s for name, s in table.entries if name == EXACT[0] and s > 1]


def _test_likelihood(tables: Sequence[Table]) -> Iterator[Verdict]:
    """Compare with the second paper's Tables 1 and 2: the exact rule against what each has beside it."""
    for table in tables:
        paper = {
            (one.estimator, one.samples): one
            for one in PUBLISHED
            if (one.data, one.model, one.metric) == (table.data, table.model, "test_bound")
        }
        for other in [entry for entry in paper if entry[0] != EXACT[0]]:
            stated = paper[EXACT].value - paper[other].value
            different, _ = differences(paper[EXACT].protocol, table.protocol, "test_bound")
            note = f"; the paper's protocol differs: {', '.join(different)}" if different else ""
            # What the later version of the first paper calls RELAX is relaxed REBAR: the second may mean either.
            for ours in [other, RELAXED] if other == RELAX else [other]:
                verdict = _sized(table, EXACT, ours, "test_bound", stated)
                yield verdict if verdict.state == "not yet run" else replace(verdict, text=verdict.text + note)


def _learning_rate(tables: Sequence[Table]) -> Iterator[Verdict]:
    """Compare runs of the same epochs at 1e-4, as in the second paper, and at 1e-3."""

    def place(table: Table) -> tuple[str, str, int]:
        return table.data, table.model, table.epochs

    for (data, model, epochs), group in groupby(sorted(tables, key=place), key=place):
        by_lr = {table.lr: table for table in group}
        if not by_lr.keys() >= {1e-4, 1e-3}:
            continue
        for entry in (REBAR, RELAX, RELAXED):
            where = f"{data}, {model}, {epochs} epochs, {name_of(entry)}"
            low, high = (by_lr[lr].seeds(entry, "test_bound") for lr in (1e-4, 1e-3))
            if low is None or high is None:
                missing = [f"lr {lr:g}" for lr, seeds in ((1e-4, low), (1e-3, high)) if seeds is None]
                yield Verdict(where, "not yet run", ", ".join(missing))
                continue
            lags = [
                f"{name_of(EXACT)} against it at {lr:g}: test bound {lag}"
                for lr, table in sorted(by_lr.items())
                if (lag := table.difference(EXACT, entry, "test_bound"))
            ]
            change = Difference(high, low)
            train = f"train ELBO at 0.0001: {by_lr[1e-4].seeds(entry, 'train_elbo')}"
            text = "; ".join([f"test bound at 0.001 against 0.0001: {change}", train, *lags])
            apart = {LABELS["test_bound"]: change.value}
            yield Verdict(where, _state([change.sign]), text, change.error is None, apart)


def _compare(table: Table, one: Entry, other: Entry, wanted: dict[str, int]) -> Verdict:
    """Judge whether one estimator is higher (1) or lower (-1) than another in each of some figures."""
    found = {metric: table.difference(one, other, metric) for metric in wanted}
    known = {metric: difference for metric, difference in found.items() if difference is not None}
    if len(known) < len(wanted):
        return Verdict(_where(table, one, other), "not yet run", table.absent(one, other))
    signs = [wanted[metric] * difference.sign for metric, difference in known.items()]
    text = "; ".join(f"{LABELS[metric]} {difference}" for metric, difference in known.items())
    one_seed = any(difference.error is None for difference in known.values())
    apart = {LABELS[metric]: difference.value for metric, difference in known.items()}
    return Verdict(_where(table, one, other), _state(signs), text, one_seed, apart)


def _sized(table: Table, one: Entry, other: Entry, metric: str, stated: float) -> Verdict:
    """Judge a difference of which the paper states the size: it holds from 3/4 of it upwards."""
    difference, where = table.difference(one, other, metric), _where(table, one, other)
    if difference is None:
        return Verdict(where, "not yet run", table.absent(one, other))
    share = difference.value / stated
    sizes: tuple[tuple[float, str, State], ...] = (
        (1.25, "more than", "holds"),
        (0.75, "about", "holds"),
        (0.0, "less than", "less than stated"),
        (-math.inf, "opposite to", "does not hold"),
    )
    size, state = next((words, state) for least, words, state in sizes if not share < least)
    text = f"{LABELS[metric]} {difference}, {size} the paper's {stated:+.2f}"
    apart = {LABELS[metric]: difference.value}
    return Verdict(where, state if difference.sign else "tie", text, difference.error is None, apart)


def _state(signs: Sequence[int]) -> State:
    return "does not hold" if min(signs) < 0 else "holds" if min(signs) > 0 else "tie"


def _where(table: Table, one: Entry, other: Entry) -> str:
    return f"{table.title}, {name_of(one)} against {name_of(other)}"


CLAIMS = (
    Claim(
        "Relaxed REBAR beats REBAR, in the training bound and in variance, everywhere.", _relaxed, "first paper, 5.2"
    ),
    Claim("RELAX performs worse than REBAR under images.", _worse, "first paper, 5.2"),
    Claim(
        "The discrete rule's log-variance is about 2 nats below that of REBAR and RELAX for sigmoid belief networks, "
        "and 1 nat below the others' for the categorical VAE.",
        _variance,
        "second paper, appendix B, Figures 5 and 6",
    ),
    Claim("One sample (S = 1) does not hurt the discrete rule.", _samples_bound, "second paper, appendix B"),
    Claim("The mean of S samples has 1/S of the variance: its log falls by log S.", _samples_variance, None),
    Claim(
        "The discrete rule reaches a higher test likelihood than REBAR, RELAX and Gumbel-softmax, by what Tables 1 and "
        "2 show (for one layer, as the text has it, about 4 nats on MNIST and 10 on Omniglot).",
        _test_likelihood,
        "second paper, appendix B, Tables 1 and 2",
    ),
    Claim("A learning rate of 0.0001 holds the control variates back at equal epochs.", _learning_rate, None),
)
"""In the order of the report."""
