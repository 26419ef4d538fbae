"""Write the table in docs/which_estimator.md from the table of record: `python docs/tables/which_estimator.py`."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from document import write_table

RECORD = Path(__file__).resolve().parents[2] / "benchmarks/results/record.jsonl"
PLACE = {"model": "bernoulli_nonlinear", "data": "MNIST", "seed": 0, "stage": 10_000}


def rows() -> list[dict[str, Any]]:
    """Return what was measured of every estimator, those of least work first."""
    found = [json.loads(line) for line in RECORD.read_text().splitlines()]
    of_place = [row for row in found if PLACE.items() <= row["settings"].items() and "time" in row["metrics"]]
    return sorted(of_place, key=lambda row: row["metrics"]["variance_encoder"] * row["metrics"]["time"])


def lines() -> Iterator[str]:
    """Yield the table."""
    yield "| estimator | f / ∇f | time of a step | log-variance | work | bias² / norm² of the gradient |"
    yield "|---|---:|---:|---:|---:|---:|"
    unbiased = [row["metrics"] for row in rows() if row["metrics"]["unbiased"] == 1]
    square = min(unbiased, key=lambda metrics: metrics["variance_encoder"])["square_encoder"]
    for row in rows():
        of = row["metrics"]
        mark = "" if of["unbiased"] == 1 else " †"
        bias = "–" if of["unbiased"] == 1 else f"{of['bias_encoder'] / square:.2f}"
        variance = math.log(of["variance_encoder"])
        cells = [row["settings"]["estimator"] + mark, f"{of['evaluations']:.0f} / {of['gradients']:.0f}"]
        cells += [f"{of['time']:.2f}", f"{variance:.2f}", f"{variance + math.log(of['time']):.2f}", bias]
        yield "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    write_table("which_estimator.md", __file__, lines())
