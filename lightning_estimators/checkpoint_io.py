"""Checkpoints that a kill, a full disk or a lost folder cannot destroy."""

from __future__ import annotations

import errno
import io
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import lightning.pytorch as pl
import torch
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from lightning.pytorch.plugins.io import TorchCheckpointIO

if os.name != "nt":
    import fcntl

__all__ = ["DurableCheckpointIO", "make_durable"]

_STAGED = re.compile(r"\.checkpoint-[0-9a-f]{32}\.partial")
_GRACE = 60.0
"""Seconds after which an empty staging file is taken for a leftover: whoever made it locks it long before."""


def make_durable(trainer: pl.Trainer) -> None:
    """Let a trainer write its checkpoints through `DurableCheckpointIO`, unless it has a way of its own.

    Only Lightning's default is replaced: a `CheckpointIO` that was given as a plugin, or that belongs to a strategy,
    stays. Checkpoints that are folders (`FSDPStrategy`, `ModelParallelStrategy`, DeepSpeed) are written by the
    strategy itself, and are not affected. Every `EstimatorModule` calls this before it trains; for a LightningModule
    that is none, write `Trainer(plugins=[DurableCheckpointIO()])`.

    Args:
        trainer: With its strategy set up, as any trainer has after its constructor.

    Example:
        >>> trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
        >>> make_durable(trainer)
        >>> type(trainer.strategy.checkpoint_io).__name__
        'DurableCheckpointIO'
    """
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = DurableCheckpointIO()


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints so that at every moment the old file or the new one is whole on the disk.

    A checkpoint is written to a hidden file in the folder of its target, forced to the disk, and renamed. A process
    that is killed at any moment, or a disk that is full, leaves the file that was there before. Lightning's own
    `TorchCheckpointIO` writes to the folder for temporary files first; if that is another device, it copies, and a
    kill or a full disk leaves a truncated file in place of the old one.

    - A checkpoint that could not be saved raises `OSError`. Lightning passes over some of these errors.
    - Hidden files of runs that were killed are removed when the next run saves into the same folder. Files that
      another process is writing at that time are locked, and stay.
    - `last.ckpt` may be a symbolic link (`ModelCheckpoint(save_last="link")`). When the checkpoint it points to is
      removed, the link is moved to the one saved last, so that it can be loaded at any time.
    - Checkpoints are read from URLs as plain data (`weights_only=True`) unless the caller asks for more. Lightning's
      default runs whatever code such a file holds.

    Files of other file systems (`s3://...`, `memory://...`) are sent whole, and their size is compared afterwards:
    Lightning passes over some errors of these, too.

    With `AsyncCheckpointIO`, wrap it: `AsyncCheckpointIO(DurableCheckpointIO())`.

    Raises:
        OSError: A checkpoint was not saved. The file that was there before is unchanged.

    Example:
        >>> import tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "last.ckpt")
        >>> files = DurableCheckpointIO()
        >>> files.save_checkpoint({"weights": torch.ones(2)}, path)
        >>> files.load_checkpoint(path, weights_only=True)
        {'weights': tensor([1., 1.])}
    """

    def __init__(self) -> None:
        super().__init__()
        self._swept: set[Path] = set()
        self._saved_last: Path | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Save a checkpoint, or raise.

        Args:
            checkpoint: What Lightning collected of module and trainer.
            path: The target; its folder is made if need be.
            storage_options: Not supported, as in the base class.
        """
        if storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)  # which says what to do instead
            return
        content = io.BytesIO()
        torch.save(checkpoint, content)
        target = _local(path)
        if target is None:
            _upload(content.getvalue(), str(path))
            return
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._sweep(target.parent)
            _replace(target, lambda file: file.write(content.getbuffer()))
        except OSError as error:
            raise OSError(
                error.errno,
                f"The checkpoint {str(target)!r} was not saved ({error.strerror or error}). What was there before is "
                "unchanged. Expected a folder that can be written, with space for "
                f"{content.getbuffer().nbytes / 2**20:.1f} MiB",
            ) from error
        self._saved_last = target

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = lambda storage, _: storage,
        weights_only: bool | None = None,  # noqa: FBT001  Lightning's signature
    ) -> dict[str, Any]:
        """Load a checkpoint; from a URL only as plain data, unless `weights_only` is False.

        Args:
            path: File or URL.
            map_location: As in `torch.load`.
            weights_only: As in `torch.load`.
        """
        if weights_only is None and _local(path) is None:
            weights_only = True
        return super().load_checkpoint(path, map_location, weights_only)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint; links to it in the same folder go on to the one saved last.

        Args:
            path: File, folder or URL.
        """
        target = _local(path)
        if target is not None and target.is_file() and self._saved_last not in (None, target):
            for link in _links_to(target):
                _move_link(link, self._saved_last)
        super().remove_checkpoint(path)

    def _sweep(self, folder: Path) -> None:
        """Remove what killed runs have left, once for every folder."""
        if folder in self._swept:
            return
        self._swept.add(folder)
        for entry in folder.iterdir():
            if _STAGED.fullmatch(entry.name) and _is_abandoned(entry):
                with suppress(OSError):
                    entry.unlink()


def _local(path: str | Path) -> Path | None:
    """Return the path if it lies on this machine's file system, None if it is another's."""
    filesystem, location = url_to_fs(str(path))
    return Path(location) if isinstance(filesystem, LocalFileSystem) else None


def _upload(content: bytes, url: str) -> None:
    """Write a file of another file system, and raise unless it is there in its full size."""
    filesystem, location = url_to_fs(url)
    filesystem.makedirs(location.rpartition("/")[0], exist_ok=True)
    filesystem.pipe_file(location, content)
    filesystem.invalidate_cache(location)
    size = filesystem.size(location) if filesystem.exists(location) else 0
    if size != len(content):
        raise OSError(f"The checkpoint {url} was not saved: {size} of {len(content)} bytes are there.")


def _replace(target: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Put what `write` writes in the place of the target, which nobody ever sees half done."""
    with _staged(target.parent) as staged:
        with open(staged, "xb") as file:
            _lock(file)
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, target)
        _sync_folder(target.parent)


def _move_link(link: Path, target: Path) -> None:
    with _staged(link.parent) as staged:
        os.symlink(os.path.relpath(target, link.parent), staged)
        os.replace(staged, link)


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Name a hidden file beside the target, and remove it where it was not renamed."""
    staged = folder / f".checkpoint-{uuid.uuid4().hex}.partial"
    try:
        yield staged
    finally:
        with suppress(OSError):
            staged.unlink(missing_ok=True)


def _links_to(target: Path) -> list[Path]:
    if target.is_symlink():
        return []
    return [entry for entry in target.parent.iterdir() if entry.is_symlink() and entry.resolve() == target.resolve()]


def _lock(file: IO[bytes]) -> None:
    """Hold the file until it is closed or the process ends; file systems without locks do without."""
    if os.name != "nt":
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)


def _is_abandoned(staged: Path) -> bool:
    """Whether no process is writing the file any more."""
    if os.name == "nt":
        return False
    try:
        with open(staged, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(file.fileno())
    except OSError:  # it is locked, has been renamed by now, or cannot be locked
        return False
    # Between making the file and locking it, it is empty.
    return status.st_size > 0 or time.time() - status.st_mtime > _GRACE


def _sync_folder(folder: Path) -> None:
    """Force the new name to the disk, where folders can be opened and synchronized."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems do not synchronize folders
            raise
    finally:
        os.close(descriptor)
