"""Execution times that the second paper reports, beside ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["TABLE_3", "table_3"]

TABLE_3 = {
    "one linear layer": {"GS": 4.11, 1: 6.32, 5: 10.93, 10: 16.83},
    "categorical VAE": {"GS": 4.13, 1: 7.32, 5: 13.29, 10: 21.94},
}
"""Seconds of an epoch on MNIST, on a NVIDIA GeForce RTX 2080 Ti: Gumbel-softmax, and categorical stochastic
backpropagation by its number of samples. Quoted, not measured here."""

_GROWTH = {"one linear layer": "S, categorical", "categorical VAE": "S, categorical nonlinear"}


def table_3(growth: Mapping[str, Any]) -> list[str]:
    """Return the paper's Table 3 as ratios to Gumbel-softmax, with ours, in lines of Markdown.

    Args:
        growth: Part "growth" of the results.
    """
    lines = [
        "| model | S | paper, GPU | ours, eager | ours, compiled | ours, eager, same S | ours, compiled, same S |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, seconds in TABLE_3.items():
        values = growth[_GROWTH[model]]["values"]
        for samples in (1, 5, 10):
            if str(samples) not in values:
                continue
            rows = [values[str(samples)].get(f"StochasticBackprop, {column}") for column in ("ours", "ours compiled")]
            cells = [
                "" if row is None else f"{row[against]['median']:.2f}"
                for against in ("/ first plain Concrete", "/ plain Concrete")
                for row in rows
            ]
            published = seconds[samples] / seconds["GS"]
            lines.append(f"| {model} | {samples} | {published:.2f} | {' | '.join(cells)} |")
    return lines
