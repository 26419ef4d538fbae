"""What must be in order before a run; imports nothing that would stumble over it."""

from __future__ import annotations

import os
import sys
import tempfile
from typing import NoReturn

__all__ = ["check_number_of_processes", "check_surroundings", "check_writable", "refuse"]

_LEAST = {"RANK": 0, "LOCAL_RANK": 0, "NODE_RANK": 0, "GROUP_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}


def check_surroundings() -> None:
    """Look at the current folder, and at what a launcher says of this process, both of which imports depend on.

    Raises:
        SystemExit: With status 2, after a message: the current folder was deleted, or an environment variable that
            numbers the processes is no number, or too small.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        refuse("the current folder was deleted; change to another one.")
    for name, least in _LEAST.items():
        value = os.environ.get(name, str(least))
        if not value.isdecimal() or int(value) < least:
            refuse(
                f"the environment variable {name} must be an integer of at least {least}, got {value!r}. It is set by "
                "launchers such as torchrun; unset it to run on this machine alone."
            )


def refuse(message: str) -> NoReturn:
    """End the process with one message and status 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def check_writable(folder: str) -> None:
    """Make a folder for logs and checkpoints, unless it lies on another machine.

    Raises:
        OSError: It cannot be made or written.
    """
    if "://" in folder:
        return
    try:
        folder = os.path.expanduser(folder)
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"the folder for logs and checkpoints cannot be written: {folder} ({error.strerror}). Give another with "
            "--trainer.default_root_dir, or write none with --trainer.logger false "
            "--trainer.enable_checkpointing false."
        ) from error


def check_number_of_processes(asked: int) -> None:
    """Raise where a run would start far more processes than there are processors for.

    Raises:
        ValueError: There are more than four for each.
    """
    processors = os.cpu_count() or 1
    if asked > 4 * processors:
        raise ValueError(
            f"--trainer.devices {asked}: on the CPU that is as many processes, and this machine has {processors} "
            f"processors. Ask for {4 * processors} at most."
        )
