"""Write a table that a program has measured into a document."""

from collections.abc import Iterable
from pathlib import Path

import torch


def write_table(document: str, program: str, lines: Iterable[str]) -> None:
    """Replace what a document has between the marks of a program, and print it meanwhile; on one thread of torch.

    Args:
        document: Name of a file in docs.
        program: Path of the program; its marks are `<!-- begin: python docs/tables/NAME -->` and `<!-- end -->`.
        lines: The table, line by line, which may take long to measure.
    """
    torch.set_num_threads(1)
    path = Path(__file__).resolve().parents[1] / document
    begin, end = f"<!-- begin: python docs/tables/{Path(program).name} -->", "<!-- end -->"
    before, rest = path.read_text().split(begin)
    _, after = rest.split(end)
    measured = []
    for line in lines:
        print(line, flush=True)
        measured.append(line)
    path.write_text(before + begin + "\n\n" + "\n".join(measured) + "\n\n" + end + after)
