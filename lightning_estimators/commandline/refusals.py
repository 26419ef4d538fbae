"""Telling what was asked for and cannot be done from what is broken."""

from __future__ import annotations

import traceback

from lightning.fabric.utilities.exceptions import MisconfigurationException

__all__ = ["is_refusal", "root_cause"]


def root_cause(error: BaseException) -> BaseException:
    """Return what a constructor raised, which jsonargparse wraps in a listing of all types that were tried."""
    while error.__cause__ is not None and _raised_in(error).startswith("jsonargparse"):
        error = error.__cause__
    return error


def is_refusal(error: BaseException) -> bool:
    """Return whether it is about what was asked for; anything else is a bug to be traced."""
    if isinstance(error, OSError) or str(error).startswith("Error(s) in loading state_dict"):
        return True
    raised_in = f"{_raised_in(error)}."
    if raised_in.startswith("torch.optim."):  # an optimizer or a scheduler that cannot work with its numbers
        return True
    return isinstance(error, _PURPOSEFUL) and raised_in.startswith(_PACKAGES)


_PURPOSEFUL = (
    *(ImportError, ValueError, TypeError, RuntimeError),
    *(FloatingPointError, RecursionError, MisconfigurationException),
)
_PACKAGES = ("lightning_estimators.", "lightning.", "jsonargparse.", "yaml.", "codecs")


def _raised_in(error: BaseException) -> str:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", ""))
