"""Show examples and tables of docstrings as such. mkdocstrings loads this extension of the reader of docstrings."""

from __future__ import annotations

import re

from griffe import Extension, Object

TABLE = re.compile(r"^(=+  +=+)\n(.*?)\n\1\n(.*?)\n\1$", re.DOTALL | re.MULTILINE)
"""A table of two columns in the form of reStructuredText: rules above and under its head, and at its end."""


class Examples(Extension):
    """Reads "Example:" as the section that the style of the docstrings calls "Examples:", and tables as Markdown's."""

    def on_object(self, *, obj: Object, **_: object) -> None:
        """Rewrite one docstring."""
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = TABLE.sub(as_markdown, text)


def as_markdown(match: re.Match[str]) -> str:
    """Return a table in the form of Markdown; a line that is indented goes on with the row above it."""
    rule, head, body = match.groups()
    second = rule.index("=", rule.index(" "))
    rows: list[list[str]] = []
    for line in (head, *body.splitlines()):
        first, rest = line[:second].strip(), line[second:].strip()
        if first or not rows:
            rows.append([first, rest])
        else:
            rows[-1][1] += f" {rest}"
    rows.insert(1, ["---", "---"])
    return "\n".join(f"| {first} | {rest} |" for first, rest in rows)
