"""What steps should cost at most, and whether they do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["targets"]

Tables = Mapping[str, Any]

FOUR = ("bernoulli linear", "bernoulli nonlinear", "categorical linear", "categorical nonlinear")


def _of_models(estimator: str, key: str, *names: str) -> Callable[[Tables], list[float]]:
    return lambda tables: [tables["models"][name]["rows"][estimator][key]["median"] for name in names]


def _of_growth(name: str, value: str, step: str, key: str) -> Callable[[Tables], list[float]]:
    return lambda tables: [tables["growth"][name]["values"][value][step][key]["median"]]


def _growth_in_d(step: str) -> Callable[[Tables], list[float]]:
    def found(tables: Tables) -> list[float]:
        grown = [tables["growth"][name]["values"] for name in ("D", "D, spread weights")]
        return [values["3200"][step]["median_ms"] / values["200"][step]["median_ms"] for values in grown]

    return found


def _all_over_storchastic(tables: Tables) -> list[float]:
    rows = [row for table in tables["models"].values() for row in table["rows"].values()]
    return [max(row["ours / Storchastic"]["median"] for row in rows if "ours / Storchastic" in row)]


def _fit(tables: Tables) -> list[float]:
    return [
        tables["fit"][name]["rows"]["ours, loader in memory"]["/ leanest"]["median"]
        for name in ("REINFORCE", "Concrete")
    ]


def _largest_mark(tables: Tables) -> list[float]:
    values = tables["memory"]["D"]["values"]
    return [max(found["process_mib"] for row in values.values() for found in row.values()) / 1024]


TARGETS: list[tuple[str, str, float, Callable[[Tables], list[float]]]] = [
    ("REINFORCE, four models", "plain", 1.10, _of_models("REINFORCE", "ours / plain", *FOUR)),
    ("Concrete, four models", "plain", 1.10, _of_models("Concrete", "ours / plain", *FOUR)),
    (
        "StochasticBackprop, Bernoulli one-layer, compiled",
        "plain Concrete",
        1.8,
        _of_models("StochasticBackprop", "ours compiled / plain Concrete", FOUR[0]),
    ),
    (
        "the same, spread weights",
        "plain Concrete",
        1.8,
        _of_models("StochasticBackprop", "ours compiled / plain Concrete", "spread weights"),
    ),
    (
        "StochasticBackprop, categorical one-layer, compiled, S = 1",
        "plain Gumbel-softmax",
        1.8,
        _of_models("StochasticBackprop", "ours compiled / plain Concrete", FOUR[2]),
    ),
    (
        "the same, S = 10",
        "plain Gumbel-softmax, S = 10",
        6,
        _of_growth("S, categorical", "10", "StochasticBackprop, ours compiled", "/ plain Concrete"),
    ),
    (
        "StochasticBackprop one-layer, eager: Bernoulli, categorical",
        "naive local expectation, chunked",
        0.30,
        _of_models("StochasticBackprop", "ours / plain", FOUR[0], FOUR[2]),
    ),
    (
        "StochasticBackprop, eager, D = 3200: initial, spread weights",
        "D = 200",
        17,
        _growth_in_d("StochasticBackprop, ours"),
    ),
    (
        "StochasticBackprop, compiled, D = 3200: initial, spread weights",
        "D = 200",
        17,
        _growth_in_d("StochasticBackprop, ours compiled"),
    ),
    (
        "RELAX one-layer: Bernoulli, categorical",
        "Storchastic",
        0.5,
        _of_models("RELAX", "ours / Storchastic", FOUR[0], FOUR[2]),
    ),
    ("every estimator, the slowest", "Storchastic", 0.8, _all_over_storchastic),
    ("`fit`: REINFORCE, Concrete, same loader", "leanest module", 1.05, _fit),
    ("StochasticBackprop, 3072 pixels, D to 10000", "GiB of a whole process", 2.0, _largest_mark),
]
"""What, against what, at most how much, and where that stands in the results."""


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
