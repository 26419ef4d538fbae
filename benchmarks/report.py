"""RESULTS.md: made of the rows, never written by hand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from benchmarks.experiment import Experiment
from benchmarks.rows import Rows

__all__ = ["write_report"]

HEAD = """\
# The papers' experiments, repeated

Made by `python -m benchmarks report` from the rows in `benchmarks/results`; nothing here is written by hand. Every row
is one run, with the command that repeats it, the commit, versions, hardware and protocol. `±` is the standard deviation
over seeds, as in the papers; n is how many there are. Figures of the papers are quoted from their text.

- First paper: Grathwohl et al., *Backpropagate through anything* (draft of *Backpropagation through the void*, 2018).
- Second paper: Echraibi et al., *Generalized stochastic backpropagation* (2020).
"""


def write_report(experiments: Mapping[str, Experiment], rows: Rows, path: Path) -> None:
    """Write the report, and beside the rows its figures.

    Args:
        experiments: By name, in the order of the report.
        rows: Finished runs.
        path: File to write.
    """
    folder = rows.folder / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [HEAD]
    for experiment in experiments.values():
        finished = rows.of(experiment.name)
        lines += [f"\n## {experiment.name}\n", f"{experiment.summary}\n", *experiment.report(finished)]
        for figure in experiment.figures(finished, folder) if finished else []:
            lines.append(f"\n![{experiment.name}: {figure.stem}]({os.path.relpath(figure, path.parent)})")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
