"""Tables and figures of the image experiment, with the figures that the papers report beside them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from benchmarks.comparison import Difference, Seeds, table
from benchmarks.experiment import Curve, Row
from benchmarks.figures import Panel, draw
from benchmarks.plan import duration

__all__ = [
    "MODELS",
    "PUBLISHED",
    "Entry",
    "Setting",
    "figures",
    "lines_of",
    "machines",
    "name_of",
    "protocols",
    "settings_of",
]

MODELS = {
    "bernoulli_linear": "one layer of 200 Bernoulli variables, linear",
    "bernoulli_two_layer": "two layers of 200 Bernoulli variables, linear",
    "bernoulli_nonlinear": "200 Bernoulli variables, two tanh layers of 200",
    "categorical_linear": "20 categorical variables of 10 classes, linear",
    "categorical_nonlinear": "20 categorical variables of 10 classes, two tanh layers of 200",
}
METRICS = {"train_elbo": "Training ELBO", "test_bound": "Test likelihood", "validation": "Best validation ELBO"}

Entry = tuple[str, int]
"""An estimator and its number of samples per image."""


class Published(NamedTuple):
    """One figure of a paper on images, quoted; in nats per image, with the standard deviation over seeds if given."""

    source: str
    estimator: str
    samples: int
    named: str
    model: str
    data: str
    metric: str
    value: float
    std: float | None


def _published() -> Iterator[Published]:
    with Path(__file__).with_name("published.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            samples, value, std = int(row["samples"]), float(row["value"]), row["std"]
            yield Published(
                **row | {"samples": samples, "value": value, "std": float(std) if std else None}  # type: ignore[arg-type]  # the values of `row` are texts, those of the other dictionary are not
            )


PUBLISHED = tuple(_published())
"""Every figure of the papers on images, in their order."""

# Steps of Grathwohl et al. (2018) as epochs: 2 million steps of 24 images, of the usual 50,000 or 24,345.
PAPERS: dict[tuple[str, str], tuple[str, ...]] = {
    ("Grathwohl et al. (2018)", "MNIST"): ("960", "", "24", "0.99999", "static", "learned", "100"),
    ("Grathwohl et al. (2018)", "Omniglot"): ("1972", "", "24", "0.99999", "static", "learned", "100"),
    ("Echraibi et al. (2020)", "MNIST"): ("500", "0.0001", "100", "", "", "", "200"),
    ("Echraibi et al. (2020)", "Omniglot"): ("100", "0.0001", "100", "", "", "", "200"),
}
"""Protocols of the papers, in the columns of `protocols`; an empty text where a paper does not state it."""


def name_of(entry: Entry) -> str:
    """Return the name of an estimator in tables."""
    estimator, samples = entry
    return f"{estimator} (S = {samples})" if estimator == "StochasticBackprop" else estimator


@dataclass(frozen=True)
class Setting:
    """The rows of one model on one data set, with one learning rate and one budget.

    Attributes:
        data: Name of the data set.
        model: Name of the model.
        lr: Learning rate.
        epochs: Budget.
        rows: All rows, failed ones included.
    """

    data: str
    model: str
    lr: float
    epochs: int
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """Data, model, learning rate and budget."""
        return f"{self.data}, {self.model}, lr {self.lr:g}, {self.epochs} epochs"

    @cached_property
    def entries(self) -> list[Entry]:
        """Estimators that have a finished row, by name."""
        found = {_entry(row) for row in self.rows if "failed" not in row}
        return sorted(found, key=lambda entry: (entry[0].lower(), entry[1]))

    def seeds(self, entry: Entry, metric: str) -> Seeds | None:
        """Return a metric over the seeds that finished; None if none did."""
        rows = self._finished(entry)
        return Seeds(tuple(float(row["metrics"][metric]) for row in rows)) if rows else None

    def seconds(self, entry: Entry) -> float:
        """Return the mean time of a run."""
        times: list[float] = [row["seconds"] for row in self._finished(entry)]
        return sum(times) / len(times)

    def difference(self, one: Entry, other: Entry, metric: str) -> Difference | None:
        """Return the difference of two estimators in a metric; None if either has no finished row."""
        first, second = self.seeds(one, metric), self.seeds(other, metric)
        return None if first is None or second is None else Difference(first, second)

    def curves(self, entry: Entry, name: str) -> list[Curve]:
        """Return a curve over epochs for each seed that finished."""
        curves = []
        for row in (row for row in self._finished(entry) if name in row["curves"]):
            last = row["curves"]["train_elbo"]["step"][-1]  # measured when an epoch ends
            steps, values = row["curves"][name]["step"], row["curves"][name]["value"]
            curves.append({"step": [step * self.epochs / last for step in steps], "value": values})
        return curves

    def absent(self, *entries: Entry) -> str:
        """Return which of these estimators have no finished row, as "RELAX, REBAR (failed)"."""
        failed = {_entry(row) for row in self.rows if "failed" in row}
        missing = [entry for entry in entries if entry not in self.entries]
        return ", ".join(name_of(entry) + (" (failed)" if entry in failed else "") for entry in missing)

    @property
    def protocol(self) -> tuple[str, ...]:
        """The protocol of these rows, in the columns of `protocols`."""
        ours = self.rows[0]["protocol"]
        return (
            str(self.epochs),
            f"{self.lr:g}",
            str(ours["batch"]),
            f"0{re.findall(r'[.][0-9]+', ours['optimizer'])[1]}",
            ours["binarization"].partition(",")[0],
            ours["prior"],
            re.findall(r"(\d+) samples", ours["test bound"])[0],
        )

    def _finished(self, entry: Entry) -> list[Row]:
        return [row for row in self.rows if _entry(row) == entry and "failed" not in row]


def settings_of(rows: Sequence[Row]) -> list[Setting]:
    """Sort rows by data, model, learning rate and epochs."""
    groups: dict[tuple[str, str, float, int], list[Row]] = {}
    for row in rows:
        of = row["settings"]
        groups.setdefault((of["data"], of["model"], float(of["lr"]), of["epochs"]), []).append(row)
    return [Setting(*key, tuple(groups[key])) for key in sorted(groups)]


def lines_of(model: str, settings: Sequence[Setting]) -> Iterator[str]:
    """Yield the table of one model, and what the papers report for it."""
    title = MODELS[model]
    yield f"\n### {title[0].upper()}{title[1:]} (`{model}`)"
    if any(row["settings"].get("quick") for setting in settings for row in setting.rows):
        yield "\nThese are quick runs of a tiny model, which only show that everything runs."
    metrics = ("train_elbo", "test_elbo", "test_bound", "log_variance_encoder", "log_variance_encoder_adam")
    head = ("data, lr, epochs", "estimator", "seeds", "training ELBO", "test ELBO", "test bound", "log-variance, fresh",
            "log-variance, Adam", "time of a run")  # fmt: skip
    body = []
    for setting in settings:
        for entry in setting.entries:
            values = [setting.seeds(entry, metric) for metric in metrics]
            count = str(values[0].n) if values[0] else "0"
            place = f"{setting.data}, {setting.lr:g}, {setting.epochs}"
            body.append((place, name_of(entry), count, *map(str, values), duration(setting.seconds(entry))))
    yield from table(head, body)
    for setting in settings:
        if any(row["protocol"] != setting.rows[0]["protocol"] for row in setting.rows):
            yield f"The rows of {setting.title} were **not all made by one protocol**; see their `protocol`.\n"
    groups: dict[tuple[str, str], dict[str, list[str]]] = {}
    for one in PUBLISHED:
        if one.model == model and one.data in {setting.data for setting in settings}:
            figure = f"{one.named} {one.value:.2f}" + ("" if one.std is None else f" ± {one.std:.2f}")
            groups.setdefault((one.data, one.metric), {}).setdefault(one.source, []).append(figure)
    for (data, metric), told in groups.items():
        by_source = "; ".join(f"{source}: {', '.join(found)}" for source, found in told.items())
        yield f"- {METRICS[metric]} on {data} in the papers. {by_source[0].upper()}{by_source[1:]}."


def protocols(settings: Sequence[Setting]) -> list[str]:
    """Return a table of how the figures were made, here and in the papers."""
    head = ("", "data", "epochs", "learning rate", "batch", "Adam's β₂", "binarization", "prior",
            "samples of the test bound")  # fmt: skip
    ours = []
    for data in dict.fromkeys(setting.data for setting in settings):
        columns = zip(*(setting.protocol for setting in settings if setting.data == data), strict=True)
        ours.append(("here", data, *(", ".join(dict.fromkeys(column)) for column in columns)))
    theirs = [(*paper, *protocol) for paper, protocol in PAPERS.items()]
    return table(head, [[cell or "not stated" for cell in line] for line in [*ours, *theirs]])


def machines(rows: Sequence[Row]) -> str:
    """Return on what the times were measured."""
    found = {(row["environment"]["threads"], row["environment"]["processor"]) for row in rows}
    told = [f"{threads} thread{'s' if threads != 1 else ''} of {processor}" for threads, processor in sorted(found)]
    return f"Times are with {', or '.join(told)}."


def figures(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw ELBO and variance over epochs, a figure for each setting, like Figures 5 and 6 of Echraibi et al. (2020)."""
    return [_draw(setting, folder) for setting in settings_of(rows) if setting.entries]


def published(data: str, model: str, metric: str) -> Mapping[Entry, Published]:
    """Return the figures of Echraibi et al. (2020) for one model, by estimator."""
    return {
        (one.estimator, one.samples): one
        for one in PUBLISHED
        if (one.data, one.model, one.metric) == (data, model, metric)
    }


def _draw(setting: Setting, folder: Path) -> Path:
    panels = [
        Panel(title, "epochs", y, {_legend(entry): setting.curves(entry, name) for entry in setting.entries})
        for title, y, name in (
            ("training", "ELBO in nats", "train_elbo"),
            ("encoder gradient, fresh", "log-variance", "log_variance_encoder"),
            ("encoder gradient, by Adam", "log-variance", "log_variance_encoder_adam"),
        )
    ]
    name = f"discrete-{setting.data}-{setting.model}-lr{setting.lr:g}-{setting.epochs}epochs.png"
    return draw(panels, folder / name, columns=3)


def _legend(entry: Entry) -> str:
    return entry[0] if entry[1] == 1 else name_of(entry)


def _entry(row: Row) -> Entry:
    return row["settings"]["estimator"], row["settings"]["samples"]
