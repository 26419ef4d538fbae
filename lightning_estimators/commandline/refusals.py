"""Telling what was refused on purpose from what is broken."""

from __future__ import annotations

import linecache
import re
import traceback

__all__ = ["is_refusal", "root_cause"]


def root_cause(error: BaseException) -> BaseException:
    """The exception of a constructor, which jsonargparse wraps in a listing of all arguments and types."""
    while error.__cause__ is not None and _raised_in(error)[0].startswith("jsonargparse"):
        error = error.__cause__
    return error


def is_refusal(error: BaseException) -> bool:
    """Whether it was raised on purpose, because of what was asked for; anything else is a bug to be traced."""
    module, line = _raised_in(error)
    refuses = re.match(r"lightning_estimators\.|lightning\.|torch\.optim\.", module)
    mismatch = str(error).startswith("Error(s) in loading state_dict")
    return line.startswith("raise") and (refuses is not None or mismatch)


def _raised_in(error: BaseException) -> tuple[str, str]:
    """Name of the module, and line of code."""
    *_, (frame, number) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", ""), linecache.getline(frame.f_code.co_filename, number).strip()
