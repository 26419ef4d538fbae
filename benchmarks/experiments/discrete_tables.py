"""Tables of the discrete experiment: rows that differ in estimator and seed only, beside the papers' figures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from benchmarks.experiment import Curve, Row
from benchmarks.progress import duration
from benchmarks.published import PUBLISHED, Protocol, Published, differences
from benchmarks.seeds import Difference, Seeds

__all__ = ["Entry", "Table", "lines_of", "name_of", "tables_of"]

MODELS = {
    "bernoulli_linear": "One layer of 200 Bernoulli variables, linear",
    "bernoulli_two_layer": "Two layers of 200 Bernoulli variables, linear",
    "bernoulli_nonlinear": "200 Bernoulli variables, two tanh layers of 200",
    "categorical_linear": "20 categorical variables of 10, linear",
    "categorical_nonlinear": "20 categorical variables of 10, two tanh layers of 200",
}
METRICS = {"train_elbo": "train ELBO", "test_bound": "test likelihood", "validation": "validation objective"}

Entry = tuple[str, int]
"""Estimator and samples per image."""


def name_of(entry: Entry) -> str:
    """Return what a table calls an estimator."""
    estimator, samples = entry
    return f"{estimator} (S = {samples})" if estimator == "StochasticBackprop" else estimator


@dataclass(frozen=True)
class Table:
    """Rows of one model on one data set at one learning rate and budget.

    Attributes:
        data: Data set.
        model: Name of the model.
        lr: Learning rate.
        epochs: Budget.
        rows: Failed ones included.
    """

    data: str
    model: str
    lr: float
    epochs: int
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """What the table is of."""
        return f"{self.data}, {self.model}, lr {self.lr:g}, {self.epochs} epochs"

    @cached_property
    def entries(self) -> list[Entry]:
        """Estimators that have a finished row, by name."""
        found = {_entry(row) for row in self.rows if "failed" not in row}
        return sorted(found, key=lambda entry: (entry[0].lower(), entry[1]))

    @property
    def failed(self) -> list[Row]:
        """Rows that ended early."""
        return [row for row in self.rows if "failed" in row]

    def seeds(self, entry: Entry, metric: str) -> Seeds | None:
        """Return a figure over the seeds that finished; None if none did."""
        rows = [row for row in self.rows if _entry(row) == entry and "failed" not in row]
        return Seeds(tuple(float(row["metrics"][metric]) for row in rows)) if rows else None

    def difference(self, one: Entry, other: Entry, metric: str) -> Difference | None:
        """Return the difference of two estimators in a figure; None if either has no finished row."""
        first, second = self.seeds(one, metric), self.seeds(other, metric)
        return None if first is None or second is None else Difference(first, second)

    def curves(self, entry: Entry, name: str) -> list[Curve]:
        """Return a curve of each seed that finished, over epochs."""
        rows = [row for row in self.rows if _entry(row) == entry and "failed" not in row and name in row["curves"]]
        curves = []
        for row in rows:
            last = row["curves"]["train_elbo"]["step"][-1]  # taken when an epoch ends
            steps, values = row["curves"][name]["step"], row["curves"][name]["value"]
            curves.append({"step": [step * self.epochs / last for step in steps], "value": values})
        return curves

    def absent(self, *entries: Entry) -> str:
        """Return why some of these estimators have no figures: "RELAX", "REBAR (failed)"; nothing if all have."""
        failed = {_entry(row) for row in self.failed}
        missing = [entry for entry in entries if entry not in self.entries]
        return ", ".join(name_of(entry) + (" (failed)" if entry in failed else "") for entry in missing)

    @property
    def bound_samples(self) -> int:
        """Samples of the test bound."""
        return int(re.findall(r"(\d+) samples", self.rows[0]["protocol"]["test bound"])[0])

    @property
    def protocol(self) -> Protocol:
        """What the figures depend on, in the papers' terms."""
        ours = self.rows[0]["protocol"]
        return Protocol(
            epochs=float(self.epochs),
            lr=self.lr,
            batch=ours["batch"],
            beta2=float(re.findall(r"\.\d+", ours["optimizer"])[1]),
            binarization=ours["binarization"].partition(",")[0],
            prior=ours["prior"],
            images="the original drawings, scaled to 28×28" if self.data == "Omniglot" else None,
            bound_samples=self.bound_samples,
        )


def tables_of(rows: Sequence[Row]) -> list[Table]:
    """Sort rows into tables, by data, model, learning rate and epochs."""
    groups: dict[tuple[str, str, float, int], list[Row]] = {}
    for row in rows:
        settings = row["settings"]
        groups.setdefault((settings["data"], settings["model"], float(settings["lr"]), settings["epochs"]), []).append(
            row
        )
    return [Table(*key, tuple(groups[key])) for key in sorted(groups)]


def lines_of(table: Table) -> Iterator[str]:
    """Yield one table of ours and what the papers have for it."""
    ours = table.rows[0]["protocol"]
    yield f"\n#### {table.title}\n"
    size = "Tiny, to see that it runs" if table.rows[0]["settings"].get("quick") else MODELS[table.model]
    yield f"{size}. {_budget(table)}\n"
    if any(row["protocol"] != ours for row in table.rows):
        yield "These rows were **not all made by one protocol**: see their `protocol`.\n"
    if table.entries:
        yield (
            f"| estimator | n | train ELBO | test ELBO | test bound ({table.bound_samples} samples) "
            "| log-variance, fresh | log-variance, Adam's | time of a run |"
        )
        yield "|---|---|---|---|---|---|---|---|"
    for entry in table.entries:
        yield _line(table, entry)
    if table.failed:
        yield ""
    for row in table.failed:
        yield f"- {name_of(_entry(row))}, seed {row['settings']['seed']}: **failed**: {row['failed']}"
    yield from _papers(table)


def _line(table: Table, entry: Entry) -> str:
    metrics = ("train_elbo", "test_elbo", "test_bound", "log_variance_encoder", "log_variance_encoder_adam")
    figures = [table.seeds(entry, metric) for metric in metrics]
    seconds = [row["seconds"] for row in table.rows if _entry(row) == entry and "failed" not in row]
    cells = [name_of(entry), str(len(seconds)), *map(str, figures), duration(sum(seconds) / len(seconds))]
    return f"| {' | '.join(cells)} |"


def _budget(table: Table) -> str:
    ours = table.rows[0]["protocol"]
    machines = {_machine(row) for row in table.rows}
    return (
        f"Budget: {table.epochs} epochs in batches of {ours['batch']}, {ours['optimizer']}, learning rate "
        f"{table.lr:g} ({ours['surrogate lr']} for the estimator's own parameters). "
        f"Times: {'; '.join(sorted(machines))}."
    )


def _machine(row: Row) -> str:
    threads = row["environment"]["threads"]
    return f"{threads} thread{'s' if threads != 1 else ''} of {row['environment']['processor']}"


def _papers(table: Table) -> Iterator[str]:
    """Yield the papers' figures for the model and the data, and what differs in how they were made."""
    published = [one for one in PUBLISHED if (one.data, one.model) == (table.data, table.model)]
    if not published:
        yield "\nThe papers have no figures for this."
        return
    yield "\nThe papers have:\n"
    groups: dict[tuple[str, str, Protocol], list[Published]] = {}
    for one in published:
        groups.setdefault((one.source, one.metric, one.protocol), []).append(one)
    for (source, metric, theirs), figures in groups.items():
        said = ", ".join(f"{one.named} {_figure(one)}" for one in figures)
        yield f"- {source}, {METRICS[metric]}: {said}. {_verdict(theirs, table.protocol, metric)}"


def _figure(one: Published) -> str:
    return f"{one.value:.2f}" + ("" if one.std is None else f" ± {one.std:.2f}")


def _verdict(theirs: Protocol, ours: Protocol, metric: str) -> str:
    if theirs == Protocol():
        return "Protocol not stated."
    different, unstated = differences(theirs, ours, metric)
    if not different and not unstated:
        return "Protocol matches."
    parts = [f"Differs: {', '.join(different)}."] if different else ["Nothing that it states differs."]
    return " ".join([*parts, *([f"Not stated: {', '.join(unstated)}."] if unstated else [])])


def _entry(row: Row) -> Entry:
    return row["settings"]["estimator"], row["settings"]["samples"]
