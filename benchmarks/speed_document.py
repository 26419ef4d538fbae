"""A document whose tables are made from results, between marks; what stands around them is written by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.speed_figures import draw_growth, draw_steps
from benchmarks.speed_tables import sections

__all__ = ["fill", "write"]

FIGURES = {"models": ("speed_steps.png", draw_steps), "growth": ("speed_growth.png", draw_growth)}
"""By the part that they show; they lie in `figures/` beside the document."""


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Make the tables of a document and its figures anew.

    Args:
        path: Document.
        results: By part.

    Raises:
        ValueError: There is nothing to write, or the document lacks a mark.
    """
    if not results:
        raise ValueError("there are no results to write: run parts first, or name their file with --output.")
    path.write_text(fill(path.read_text(), sections(results)))
    for part, (name, draw) in FIGURES.items():
        if part in results:
            draw(results[part], path.parent / "figures" / name)


def fill(text: str, made: Mapping[str, str]) -> str:
    """Replace what stands between `<!-- name -->` and `<!-- end -->` by the section of that name.

    Raises:
        ValueError: A section has no mark.
    """
    for name, section in made.items():
        mark = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not mark.search(text):
            raise ValueError(f"expected `<!-- {name} -->` and `<!-- end -->` around the {name} of the document.")
        text = mark.sub(lambda found, section=section: f"{found[1]}\n{section}\n\n{found[2]}", text)  # type: ignore[misc]
    return text
