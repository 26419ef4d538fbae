"""Show the examples of docstrings as code. mkdocstrings loads this extension of the reader of docstrings."""

from __future__ import annotations

import re

from griffe import Extension, Object


class Examples(Extension):
    """Read "Example:" as the section that the style of the docstrings calls "Examples:"."""

    def on_object(self, *, obj: Object, **_: object) -> None:
        """Rename the section of one docstring."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
