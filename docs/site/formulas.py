"""Formulas become MathML, which browsers show without a script. mkdocs calls `on_page_content`."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
DISPLAY = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.DOTALL)

FUNCTION = re.compile(r"(<mi>(?:log|exp|max|min|Var)</mi>)(?=<m(?:i|n|sub)>)")
"""The name of a function whose argument has no brackets, from which a thin space parts it."""


def mathml(formula: str, display: str) -> str:
    """Return a formula of LaTeX as MathML."""
    found = convert(html.unescape(formula).strip(), display=display)
    return FUNCTION.sub(r'\1<mspace width="0.17em"/>', found)


def on_page_content(content: str, **_: object) -> str:
    """Replace every formula of a page."""
    content = DISPLAY.sub(lambda match: mathml(match[1], "block"), content)
    return INLINE.sub(lambda match: mathml(match[1], "inline"), content)
