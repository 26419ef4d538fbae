"""What must be in order before anything is imported that would stumble over it."""

from __future__ import annotations

import os

__all__ = ["check_surroundings"]

_LEAST = {"RANK": 0, "LOCAL_RANK": 0, "NODE_RANK": 0, "GROUP_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}


def check_surroundings() -> None:
    """Look at the current folder, and at what a launcher says of this process.

    Raises:
        FileNotFoundError: The current folder was deleted.
        ValueError: An environment variable that numbers the processes is no number, or too small.
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise FileNotFoundError("the current folder was deleted; change to another one.") from error
    for name, least in _LEAST.items():
        value = os.environ.get(name, str(least))
        if not value.isdecimal() or int(value) < least:
            raise ValueError(
                f"the environment variable {name} must be an integer of at least {least}, got {value!r}. It is set by "
                "launchers such as torchrun; unset it to run on this machine alone."
            )
