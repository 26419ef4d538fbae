"""Tables and figures of the image experiment, with the figures that the papers report beside them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from benchmarks.comparison import Difference, Seeds, grouped, seeds, table
from benchmarks.experiment import Curve, Row
from benchmarks.figures import Panel, curves_of, draw
from benchmarks.plan import duration

__all__ = ["MODELS", "PUBLISHED", "Setting", "figures", "label", "lines_of", "protocols", "published", "settings_of"]

MODELS = {
    "bernoulli_linear": "one layer of 200 Bernoulli variables, linear",
    "bernoulli_two_layer": "two layers of 200 Bernoulli variables, linear",
    "bernoulli_nonlinear": "200 Bernoulli variables, two tanh layers of 200",
    "categorical_linear": "20 categorical variables of 10 classes, linear",
    "categorical_nonlinear": "20 categorical variables of 10 classes, two tanh layers of 200",
}
METRICS = {"train_elbo": "Training ELBO", "test_bound": "Test likelihood", "validation": "Best validation ELBO"}
COLUMNS = {
    "training ELBO": "train_elbo",
    "test ELBO": "test_elbo",
    "test bound": "test_bound",
    "log-variance, fresh": "log_variance_encoder",
    "log-variance, Adam": "log_variance_encoder_adam",
}


def label(estimator: str, samples: int) -> str:
    """Return the name of an estimator with its number of samples, which only the discrete rule has several of."""
    return f"{estimator} (S = {samples})" if estimator == "StochasticBackprop" else estimator


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

    def __str__(self) -> str:
        return f"{self.named} {self.value:.2f}" + ("" if self.std is None else f" ± {self.std:.2f}")


def _published() -> Iterator[Published]:
    with Path(__file__).with_name("published.csv").open(newline="") as file:
        for row in csv.reader(file):
            source, estimator, samples, named, model, data, metric, value, std = row
            if source != "source":
                deviation = float(std) if std else None
                yield Published(source, estimator, int(samples), named, model, data, metric, float(value), deviation)


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


def published(data: str, model: str, metric: str) -> Mapping[str, Published]:
    """Return the figures that Echraibi et al. (2020) give for one model, by `label`."""
    found = (one for one in PUBLISHED if (one.data, one.model, one.metric) == (data, model, metric))
    return {label(one.estimator, one.samples): one for one in found}


@dataclass(frozen=True)
class Setting:
    """The rows of one model on one data set, with one learning rate and one budget; failed ones included."""

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
    def _by_estimator(self) -> dict[tuple[str, int], list[Row]]:
        groups: dict[tuple[str, int], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((row["settings"]["estimator"], row["settings"]["samples"]), []).append(row)
        return dict(sorted(groups.items(), key=lambda item: (item[0][0].lower(), item[0][1])))

    @cached_property
    def finished(self) -> dict[str, list[Row]]:
        """The rows that did not fail, by `label`; without estimators that have none."""
        parts = {label(*one): [row for row in rows if "failed" not in row] for one, rows in self._by_estimator.items()}
        return {name: rows for name, rows in parts.items() if rows}

    def seeds(self, name: str, metric: str) -> Seeds | None:
        """Return a metric over the seeds that finished; None if none did."""
        return seeds(self.finished.get(name, []), metric)

    def difference(self, one: str, other: str, metric: str) -> Difference | None:
        """Return the difference of two estimators in a metric; None if either has no finished row."""
        first, second = self.seeds(one, metric), self.seeds(other, metric)
        return None if first is None or second is None else Difference(first, second)

    def several(self) -> list[int]:
        """Return the numbers of samples above one with which the discrete rule was run."""
        exact = [samples for name, samples in self._by_estimator if name == "StochasticBackprop" and samples > 1]
        return [samples for samples in exact if label("StochasticBackprop", samples) in self.finished]

    def curves(self, name: str, curve: str) -> list[Curve]:
        """Return a curve over epochs for each seed that finished."""
        rows = [row for row in self.finished.get(name, []) if curve in row["curves"]]
        ends = [row["curves"]["train_elbo"]["step"][-1] for row in rows]  # measured when an epoch ends
        return [
            {"step": [step * self.epochs / end for step in found["step"]], "value": found["value"]}
            for found, end in zip(curves_of(rows, curve), ends, strict=True)
        ]

    def absent(self, *names: str) -> str:
        """Return which of these estimators have no finished row, as "RELAX, REBAR (failed)"."""
        failed = {label(*one) for one in self._by_estimator} - self.finished.keys()
        missing = [name for name in names if name not in self.finished]
        return ", ".join(name + (" (failed)" if name in failed else "") for name in missing)

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


def settings_of(rows: Sequence[Row]) -> list[Setting]:
    """Sort rows by data, model, learning rate and epochs."""
    found = grouped(rows, "data", "model", "lr", "epochs").items()
    return [Setting(str(d), str(m), float(lr), int(epochs), tuple(part)) for (d, m, lr, epochs), part in found]


def lines_of(model: str, settings: Sequence[Setting]) -> Iterator[str]:
    """Yield the table of one model, and what the papers report for it."""
    title = MODELS[model]
    yield f"\n### {title[0].upper()}{title[1:]} (`{model}`)"
    if any(row["settings"].get("quick") for setting in settings for row in setting.rows):
        yield "\nThese are quick runs of a tiny model, which only show that everything runs."
    body = []
    for setting in settings:
        for name, rows in setting.finished.items():
            values = [str(setting.seeds(name, metric)) for metric in COLUMNS.values()]
            time = duration(sum(row["seconds"] for row in rows) / len(rows))
            body.append((f"{setting.data}, {setting.lr:g}, {setting.epochs}", name, str(len(rows)), *values, time))
    yield from table(("data, lr, epochs", "estimator", "seeds", *COLUMNS, "time of a run"), body)
    for setting in settings:
        if any(row["protocol"] != setting.rows[0]["protocol"] for row in setting.rows):
            yield f"The rows of {setting.title} were **not all made by one protocol**; see their `protocol`.\n"
    groups: dict[tuple[str, str], dict[str, list[str]]] = {}
    for one in PUBLISHED:
        if one.model == model and one.data in {setting.data for setting in settings}:
            groups.setdefault((one.data, one.metric), {}).setdefault(one.source, []).append(str(one))
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


def figures(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw ELBO and variance over epochs, a figure for each setting, like Figures 5 and 6 of Echraibi et al. (2020)."""
    return [_draw(setting, folder) for setting in settings_of(rows) if setting.finished]


def _draw(setting: Setting, folder: Path) -> Path:
    def panel(title: str, y: str, curve: str) -> Panel:
        lines = {name.removesuffix(" (S = 1)"): setting.curves(name, curve) for name in setting.finished}
        return Panel(title, "epochs", y, lines)

    panels = [
        panel("training", "ELBO in nats", "train_elbo"),
        panel("encoder gradient, fresh", "log-variance", "log_variance_encoder"),
        panel("encoder gradient, by Adam", "log-variance", "log_variance_encoder_adam"),
    ]
    name = f"discrete-{setting.data}-{setting.model}-lr{setting.lr:g}-{setting.epochs}epochs.png"
    return draw(panels, folder / name, columns=3)
