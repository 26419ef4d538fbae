"""docs/record.md: the table of record as a page, written from the rows."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.comparison import grouped, table
from benchmarks.experiment import Row, Run, Value
from benchmarks.figures import save
from benchmarks.record_model import DATA_NOISE, TITLES

__all__ = ["figures", "missing", "tables", "write_page"]

GRADIENT_COST = 2
"""Evaluations of f that one evaluation of its gradient counts for: about what it takes in a perceptron."""

HEAD = """\
# The table of record

What does each gradient estimator of this package cost, and how noisy and how wrong is what it returns? To compare
them, all must be measured at the same weights, because the variance of a gradient changes a hundredfold in training.
So one model is trained on one trajectory (REINFORCE with the leave-one-out baseline and 4 samples, Adam at 0.001,
batches of 100 images), its weights are frozen after 1,000, 10,000 and 50,000 steps, and every estimator draws its
estimates there, all of them on the same batch of 100 training images. `python -m benchmarks record` does all this, and
`python -m benchmarks report` writes this page from its rows in `benchmarks/results/record.jsonl`, which hold the
command, the commit and the machine of each figure.

## How to read the tables

- *Logits*: the gradient of an example's own cost (its negative ELBO, in nats) in the logits of its latents; with two
  layers, of the layer next to the image. *Encoder*: the gradient of the mean cost of the batch in all parameters of the
  encoder, which is what training feels. The **log-variance** is the natural logarithm of the variance, summed over
  entries; for logits, averaged over the 100 examples.
- **f / ∇f** is how often the estimator evaluates the cost and its gradient per example. **Time** is the processor time
  of a whole training step (loss, backward, Adam) in those of REINFORCE with one sample and a moving average: the median
  of ratios between steps that take turns on one thread. **Memory** is the peak of such a step, in MiB.
- Averaging n independent estimates divides the variance by n and multiplies the cost by n. What does not change is the
  *work-normalized* variance: log-variance + log cost, where the cost is either the number of **evaluations**, a
  gradient counted as two, or the **time**. Lower is better; a difference of 0.69 is a factor of two.
- **bias²** is the squared distance between the mean of the estimates and the gradient, after the noise of both is
  subtracted, so that it can be negative. The gradient is the mean over all unbiased estimators measured before,
  weighted by their precision, and it is known no better than the error says. Estimators marked † are biased by design.
- ± is the standard error of one seed's figure, from ten groups of draws; of several seeds, the standard
  deviation over seeds (for bias², the standard error of their mean).
- Estimators that learn (control variates, baselines, statistics of sampled changes) did so for the stated number of
  steps at the frozen weights, on other training batches, before they were measured. In training they follow weights
  that move, for as long as training takes.
- *Other batches* is the variance of the exact gradient from one training batch to the next. An estimator whose
  variance in the encoder is well below it can hardly speed up training further.
"""


def write_page(rows: Sequence[Row], missing_runs: Sequence[Run], path: Path) -> None:
    """Write the page, and its figures beside it.

    Args:
        rows: Finished runs.
        missing_runs: What a full plan has besides.
        path: File to write.
    """
    drawn = figures(rows, path.parent / "figures")
    links = [f"\n![{figure.stem}]({os.path.relpath(figure, path.parent)})" for figure in drawn]
    lines = [HEAD, "## What was not run\n", *missing(missing_runs, rows), *tables(rows), *links]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines).replace("\n\n\n", "\n\n") + "\n")


def missing(runs: Sequence[Run], rows: Sequence[Row]) -> Iterator[str]:
    """Yield what lacks rows: places where nothing was run, then single estimators.

    Args:
        runs: Those of a full plan that have no row.
        rows: Finished runs.
    """
    visited = {_place(row["settings"]) for row in rows}
    untouched: dict[str, list[int]] = {}
    lacking: dict[str, list[str]] = {}
    for run in runs:
        *where, seed = _place(run.settings)
        if _place(run.settings) not in visited:
            seeds = untouched.setdefault("{}, {}, {:,} steps".format(*where), [])
            seeds += [] if seed in seeds else [seed]
        else:
            place = "{}, {}, {:,} steps, seed {}".format(*where, seed)
            lacking.setdefault(place, []).append(str(run.settings["estimator"]))
    yield from (f"- {place}: {', '.join(labels)}." for place, labels in lacking.items())
    yield from (f"- {place}: seeds {', '.join(map(str, seeds))} as a whole." for place, seeds in untouched.items())
    if not runs:
        yield "Everything was run."


def _place(settings: Mapping[str, Value]) -> tuple[str, str, int, int]:
    s = settings
    return TITLES[str(s["model"])], str(s["data"]), int(s["stage"]), int(s["seed"])


def tables(rows: Sequence[Row]) -> list[str]:
    """Return a table for each model, data set and stage, the estimators of least work first."""
    lines: list[str] = []
    for (model, data, stage), group in grouped(rows, "model", "data", "stage").items():
        of = _entries(group)
        noise = of.pop(DATA_NOISE, None)
        lines.append(f"\n## {TITLES[str(model)]}, {data}, after {int(stage):,} steps\n")
        lines += _facts(list(of.values()), noise)
        head = ["", "f / ∇f", "time", "MiB", "logits: log-variance", "× evaluations", "× time"]
        head += ["encoder: log-variance", "× evaluations", "× time", "logits: bias²", "encoder: bias²"]
        ordered = sorted(of.values(), key=lambda entry: entry.work("encoder", "time") or math.inf)
        lines += table(head, [_cells(entry) for entry in ordered])
    return lines


def figures(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw variance against time, a figure for each model and data set and in it a column for each stage."""
    drawn = []
    for (model, data), group in grouped(rows, "model", "data").items():
        stages = grouped(group, "stage")
        figure = Figure(figsize=(6.2 * len(stages), 9.5), layout="constrained")
        grid = figure.subplots(2, len(stages), squeeze=False)
        for column, ((stage,), of) in enumerate(stages.items()):
            entries = _entries(of)
            for axes, name in zip(grid[:, column], ("logits", "encoder"), strict=True):
                _draw(axes, entries, name)
                axes.set_title(f"{name}, after {int(stage):,} steps")
        drawn.append(save(figure, folder / f"record-{data}-{model}.png"))
    return drawn


@dataclass(frozen=True)
class _Entry:
    """An estimator at one place, with a row for each seed."""

    label: str
    rows: Sequence[Row]

    def values(self, metric: str) -> list[float]:
        """Return a metric of the seeds that have it."""
        return [row["metrics"][metric] for row in self.rows if metric in row["metrics"]]

    def mean(self, metric: str) -> float | None:
        """Return the mean of a metric over seeds."""
        values = self.values(metric)
        return statistics.fmean(values) if values else None

    def log_variance(self, name: str) -> tuple[float, float] | None:
        """Return the mean over seeds, and its spread or, of one seed, the standard error."""
        values = [math.log(value) for value in self.values(f"variance_{name}") if value > 0]
        if not values:
            return None
        if len(values) > 1:
            return statistics.fmean(values), statistics.stdev(values)
        return values[0], self.values(f"variance_{name}_error")[0] / math.exp(values[0])

    def bias(self, name: str) -> tuple[float, float] | None:
        """Return the squared bias, mean over seeds, and its standard error."""
        values, errors = self.values(f"bias_{name}"), self.values(f"bias_{name}_error")
        return (statistics.fmean(values), math.hypot(*errors) / len(errors)) if values else None

    def work(self, name: str, axis: str) -> float | None:
        """Return the log-variance plus the logarithm of the cost."""
        variance, f, gradients = self.log_variance(name), self.mean("evaluations"), self.mean("gradients")
        cost = self.mean("time")
        if axis == "evaluations":
            cost = None if f is None or gradients is None else f + GRADIENT_COST * gradients
        return None if variance is None or cost is None else variance[0] + math.log(cost)


def _entries(rows: Sequence[Row]) -> dict[str, _Entry]:
    """Return the estimators by name; of several rows of one seed, that of most draws counts."""
    found = {}
    for (label,), group in grouped(rows, "estimator").items():
        by_seed = {row["settings"]["seed"]: row for row in sorted(group, key=lambda row: row["settings"]["draws"])}
        found[str(label)] = _Entry(str(label), list(by_seed.values()))
    return found


def _cells(entry: _Entry) -> list[str]:
    f, gradients = entry.mean("evaluations"), entry.mean("gradients")
    time, memory = entry.mean("time"), entry.mean("memory_mib")
    biased = entry.mean("unbiased") == 0
    cells = [
        entry.label + (" †" if biased else ""),
        "–" if f is None or gradients is None else f"{f:.0f} / {gradients:.0f}",
        "–" if time is None else f"{time:.2f}",
        "–" if memory is None else f"{memory:.0f}",
    ]
    for name in ("logits", "encoder"):
        works = [entry.work(name, axis) for axis in ("evaluations", "time")]
        cells += [_stated(entry.log_variance(name)), *("–" if work is None else f"{work:.2f}" for work in works)]
    return cells + [_rounded(entry.bias(name)) for name in ("logits", "encoder")]


def _facts(entries: Sequence[_Entry], noise: _Entry | None) -> Iterator[str]:
    """Yield what holds for all estimators at one place."""
    seeds = sorted({row["settings"]["seed"] for entry in entries for row in entry.rows})
    of_seeds = [len(entry.rows) for entry in entries]
    draws = sorted({row["settings"]["draws"] for entry in entries for row in entry.rows})
    fitted = sorted({int(row["metrics"]["fit"]) for entry in entries for row in entry.rows} - {0})
    yield f"- Seeds: {', '.join(map(str, seeds))}" + (
        " (not all estimators have all of them)." if of_seeds and min(of_seeds) < len(seeds) else "."
    )
    yield f"- Draws: {', '.join(map(str, draws))}. Steps of fitting: {', '.join(map(str, fitted)) or 'none'}."
    for name in ("logits", "encoder"):
        unbiased = [entry for entry in entries if entry.mean("unbiased") and entry.log_variance(name)]
        if unbiased:
            best = min(unbiased, key=lambda entry: entry.log_variance(name) or (math.inf, 0))
            yield f"- Squared norm of the gradient, {name}: {best.mean(f'square_{name}'):.3g}."
    if noise is not None and entries:
        yield f"- *Other batches*, encoder: log-variance {_stated(noise.log_variance('encoder'))}."


def _stated(figure: tuple[float, float] | None) -> str:
    return "–" if figure is None else f"{figure[0]:.2f} ± {figure[1]:.2f}"


def _rounded(figure: tuple[float, float] | None) -> str:
    """Return value and error to the first two digits of the error."""
    if figure is None:
        return "–"
    value, error = figure
    digits = max(0, 1 - math.floor(math.log10(error))) if error > 0 else 3
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _draw(axes: Axes, entries: dict[str, _Entry], name: str) -> None:
    slowest = max((math.log(time) for time in (entry.mean("time") for entry in entries.values()) if time), default=0.0)
    for entry in entries.values():
        variance, time = entry.log_variance(name), entry.mean("time")
        if entry.label == DATA_NOISE and variance is not None:
            axes.axhline(variance[0], color="0.6", linestyle="--", linewidth=0.8, label="other batches")
        elif variance is not None and time is not None:
            color = "C0" if entry.mean("unbiased") else "C1"
            axes.plot(math.log(time), variance[0], "o", color=color, markersize=4)
            to_the_left = math.log(time) > 0.6 * slowest  # long names would leave the axes
            axes.annotate(
                entry.label,
                (math.log(time), variance[0]),
                xytext=(-3 if to_the_left else 3, 3),
                textcoords="offset points",
                horizontalalignment="right" if to_the_left else "left",
                fontsize=6,
            )
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    for start in range(math.floor(low + left), math.ceil(high + right) + 1):  # equal variance times time
        axes.plot([left, right], [start - left, start - right], color="0.9", linewidth=0.6, zorder=0)
    axes.set(xlim=(left, right), ylim=(low, high), xlabel="log time of a step", ylabel="log-variance")
