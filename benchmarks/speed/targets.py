"""What steps should cost at most, and whether they do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["targets"]

Tables = Mapping[str, Any]
"""The tables of each part of the results."""

BERNOULLI, CATEGORICAL = "bernoulli linear", "categorical linear"
FOUR = (BERNOULLI, "bernoulli nonlinear", CATEGORICAL, "categorical nonlinear")
EXACT = "StochasticBackprop"


def _ratio(estimator: str, against: str, names: Sequence[str]) -> Callable[[Tables], list[float]]:
    return lambda tables: [tables["models"][name]["rows"][estimator][against]["median"] for name in names]


def _growth(step: str) -> Callable[[Tables], list[float]]:
    """Return the time with 3200 latents over that with 200, for initial and for spread weights."""
    return lambda tables: [
        tables["growth"][name]["values"]["3200"][step]["median_ms"]
        / tables["growth"][name]["values"]["200"][step]["median_ms"]
        for name in ("D", "D, spread weights")
    ]


def _ten_samples(tables: Tables) -> list[float]:
    values = tables["growth"]["S, categorical"]["values"]["10"]
    return [values[f"{EXACT}, ours compiled"]["/ plain Concrete"]["median"]]


def _many_classes(tables: Tables) -> list[float]:
    values = tables["growth"]["K"]["values"]["50"]
    return [values[f"{EXACT}, ours compiled"]["/ plain Concrete"]["median"]]


def _slowest(tables: Tables) -> list[float]:
    rows = [row for table in tables["models"].values() for row in table["rows"].values()]
    return [max(row["ours / Storchastic"]["median"] for row in rows if "ours / Storchastic" in row)]


def _fit(tables: Tables) -> list[float]:
    rows = [tables["fit"][name]["rows"]["ours, loader in memory"] for name in ("REINFORCE", "Concrete")]
    return [row["/ leanest"]["median"] for row in rows]


def _memory(tables: Tables) -> list[float]:
    peaks = [found["process_mib"] for row in tables["memory"]["D"]["values"].values() for found in row.values()]
    return [max(peaks) / 1024]


COMPILED, NAIVE = "ours compiled / plain Concrete", "ours / plain"

TARGETS: list[tuple[str, str, float, Callable[[Tables], list[float]]]] = [
    ("REINFORCE, four models", "plain", 1.10, _ratio("REINFORCE", NAIVE, FOUR)),
    ("Concrete, four models", "plain", 1.10, _ratio("Concrete", NAIVE, FOUR)),
    (f"{EXACT}, Bernoulli one-layer, compiled", "plain Concrete", 1.75, _ratio(EXACT, COMPILED, [BERNOULLI])),
    ("the same, spread weights", "plain Concrete", 1.75, _ratio(EXACT, COMPILED, ["spread weights"])),
    (
        f"{EXACT}, categorical one-layer, compiled, S = 1",
        "plain Gumbel-softmax",
        1.7,
        _ratio(EXACT, COMPILED, [CATEGORICAL]),
    ),
    ("the same, K = 50 classes", "plain Gumbel-softmax, K = 50", 2.0, _many_classes),
    ("the same, S = 10", "plain Gumbel-softmax, S = 10", 1.8, _ten_samples),
    (
        f"{EXACT} one-layer, eager: Bernoulli, categorical",
        "naive local expectation, chunked",
        0.30,
        _ratio(EXACT, NAIVE, [BERNOULLI, CATEGORICAL]),
    ),
    (f"{EXACT}, eager, D = 3200: initial, spread weights", "D = 200", 17, _growth(f"{EXACT}, ours")),
    (f"{EXACT}, compiled, D = 3200: initial, spread weights", "D = 200", 17, _growth(f"{EXACT}, ours compiled")),
    (
        "RELAX one-layer: Bernoulli, categorical",
        "Storchastic",
        0.5,
        _ratio("RELAX", "ours / Storchastic", [BERNOULLI, CATEGORICAL]),
    ),
    ("every estimator, the slowest", "Storchastic", 0.8, _slowest),
    ("`fit`: REINFORCE, Concrete, same loader", "leanest module", 1.03, _fit),
    (f"{EXACT}, 3072 pixels, D to 10000", "GiB of a whole process", 2.0, _memory),
]
"""What is timed, against what, the largest ratio, and how to find it in the results."""


def targets(tables: Tables) -> str:
    """Return the targets with what was measured, as Markdown."""
    lines = ["| step | against | at most | measured | |", "|---|---|---|---|---|"]
    for what, against, limit, measured in TARGETS:
        try:
            found = measured(tables)
        except (KeyError, ValueError):  # a part, a column or a size was not run
            lines.append(f"| {what} | {against} | {limit:g} | not measured | |")
            continue
        met = sum(value <= limit for value in found)
        verdict = {len(found): "met", 0: "not met"}.get(met, f"met by {met} of {len(found)}")
        lines.append(f"| {what} | {against} | {limit:g} | {', '.join(f'{v:.2f}' for v in found)} | {verdict} |")
    return "\n".join(lines)
