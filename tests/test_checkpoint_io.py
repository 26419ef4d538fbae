"""Checkpoints survive kills, full disks and folders that cannot be written."""

import errno
import io
import os
import resource
import signal
import traceback
from pathlib import Path

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from modules.tiny import Tiny, rows, trainer

from lightning_estimators import checkpoint_io
from lightning_estimators.checkpoint_io import DurableCheckpointIO, make_durable
from lightning_estimators.estimators import REINFORCE

pytestmark = pytest.mark.filterwarnings("ignore")  # of forks, and of loaders without workers

OLD, NEW = ({"weights": torch.full((50_000,), value)} for value in (1.0, 2.0))


def forked(action):
    """Run an action in a process of its own, and return its exit status; negative is the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            status = action() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def value(path):
    return float(torch.load(path, weights_only=True)["weights"].unique())


def before(function):
    return lambda *args: (die(), function(*args))


def after(function):
    return lambda *args: (function(*args), die())


def cut(share):
    """Kill while the file is written, after a share of it has reached the disk."""

    def replace(target, write, original=checkpoint_io._replace):
        content = io.BytesIO()
        write(content)
        whole = content.getvalue()

        def write_a_part(file):
            file.write(whole[: int(share * len(whole))])
            file.flush()
            die()

        original(target, write_a_part)

    return replace


KILLS = {
    "before the file is made": (checkpoint_io, "_replace", before(checkpoint_io._replace)),
    "before it is locked": (checkpoint_io, "_lock", before(checkpoint_io._lock)),
    "before the first byte": (checkpoint_io, "_lock", after(checkpoint_io._lock)),
    "in the first bytes": (checkpoint_io, "_replace", cut(0.001)),
    "in the middle": (checkpoint_io, "_replace", cut(0.5)),
    "after the last byte": (checkpoint_io, "_replace", cut(1.0)),
    "before it is forced to the disk": (os, "fsync", before(os.fsync)),
    "after it is forced to the disk": (os, "fsync", after(os.fsync)),
    "before it is renamed": (os, "replace", before(os.replace)),
    "after it is renamed": (os, "replace", after(os.replace)),
}


@pytest.mark.parametrize("moment", KILLS)
def test_a_kill_at_any_moment_leaves_a_whole_file_and_the_next_run_cleans_up(moment, tmp_path, monkeypatch):
    target = tmp_path / "last.ckpt"
    DurableCheckpointIO().save_checkpoint(OLD, target)

    def save():
        owner, name, killing = KILLS[moment]
        setattr(owner, name, killing)
        DurableCheckpointIO().save_checkpoint(NEW, target)

    assert forked(save) == -signal.SIGKILL
    assert value(target) == (2.0 if moment == "after it is renamed" else 1.0)
    monkeypatch.setattr(checkpoint_io, "_GRACE", -1.0)  # an empty file is a minute old
    DurableCheckpointIO().save_checkpoint(NEW, tmp_path / "other.ckpt")
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "other.ckpt"]


def test_what_another_process_is_writing_is_not_cleaned_up(tmp_path):
    staged = tmp_path / f".checkpoint-{'0' * 32}.partial"
    with open(staged, "xb") as file:
        DurableCheckpointIO().save_checkpoint(OLD, tmp_path / "a.ckpt")
        assert staged.exists()  # empty: it may have been made this moment
        checkpoint_io._lock(file)
        file.write(b"half")
        file.flush()
        DurableCheckpointIO().save_checkpoint(OLD, tmp_path / "b.ckpt")
        assert staged.exists()
    DurableCheckpointIO().save_checkpoint(OLD, tmp_path / "c.ckpt")
    assert not staged.exists()


def test_a_full_disk_leaves_the_file_as_it_was_and_says_so(tmp_path):
    target = tmp_path / "last.ckpt"
    DurableCheckpointIO().save_checkpoint(OLD, target)

    def save():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(OSError, match=r"last.ckpt' was not saved \(File too large\)\. .* unchanged.* 0\.2 MiB"):
            DurableCheckpointIO().save_checkpoint(NEW, target)

    assert forked(save) == 0
    assert value(target) == 1.0
    assert os.listdir(tmp_path) == ["last.ckpt"]


@pytest.mark.parametrize("operation", ["os.fsync", "os.replace", "builtins.open"])
def test_an_error_of_the_system_is_raised_with_its_number(operation, tmp_path, monkeypatch):
    target = tmp_path / "last.ckpt"
    DurableCheckpointIO().save_checkpoint(OLD, target)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(operation, refuse)
        with pytest.raises(PermissionError, match=r"was not saved \(Permission denied\)") as caught:
            DurableCheckpointIO().save_checkpoint(NEW, target)
    assert caught.value.errno == errno.EACCES
    assert value(target) == 1.0
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "checkpoints").write_text("not a folder")
    with pytest.raises(OSError, match="was not saved"):
        DurableCheckpointIO().save_checkpoint(OLD, tmp_path / "checkpoints" / "last.ckpt")


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    DurableCheckpointIO().save_checkpoint(OLD, tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_other_file_systems_get_checkpoints_too():
    path = "memory://checkpoints/last.ckpt"
    files = DurableCheckpointIO()
    files.save_checkpoint(OLD, path)
    assert torch.equal(files.load_checkpoint(path)["weights"], OLD["weights"])
    files.remove_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        files.load_checkpoint(path)


@pytest.mark.parametrize("before", [None, OLD])
def test_an_error_on_another_file_system_is_raised(before, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("this bucket is read-only")

    path = f"memory://folder-{before is None}/last.ckpt"
    if before is not None:  # a file that is there does not make a save that failed look like one that did not
        DurableCheckpointIO().save_checkpoint(before, path)
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.pipe_file", refuse)
    with pytest.raises(PermissionError, match="this bucket is read-only"):
        DurableCheckpointIO().save_checkpoint(NEW, path)


def test_a_file_of_another_file_system_that_is_cut_off_is_noticed(monkeypatch):
    write = MemoryFileSystem.pipe_file
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", lambda self, path, value: write(self, path, value[:100]))
    with pytest.raises(OSError, match=r"memory://short/last.ckpt was not saved: 100 of \d+ bytes are there"):
        DurableCheckpointIO().save_checkpoint(OLD, "memory://short/last.ckpt")


def test_urls_are_read_as_plain_data(tmp_path):
    class Code:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'pwned'}",)

    files = DurableCheckpointIO()
    files.save_checkpoint({"code": Code()}, "memory://strange/last.ckpt")
    with pytest.raises(Exception, match="weights_only"):
        files.load_checkpoint("memory://strange/last.ckpt")
    assert not (tmp_path / "pwned").exists()


def test_only_lightnings_own_default_is_replaced():
    class Mine(TorchCheckpointIO):
        pass

    for given, kept in (([], DurableCheckpointIO), ([Mine()], Mine), ([AsyncCheckpointIO()], AsyncCheckpointIO)):
        made = trainer(plugins=given)
        make_durable(made)
        assert type(made.strategy.checkpoint_io) is kept
    durable = made.strategy.checkpoint_io
    make_durable(made)
    assert made.strategy.checkpoint_io is durable


def fit(saving, **options):
    module = Tiny(REINFORCE())
    made = trainer(callbacks=[saving], enable_checkpointing=True, max_epochs=3, **options)
    made.fit(module, rows(batches=2))
    return made


def test_every_estimator_module_saves_durably(tmp_path, monkeypatch):
    assert type(fit(ModelCheckpoint(tmp_path)).strategy.checkpoint_io) is DurableCheckpointIO

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match=r"was not saved \(Read-only file system\)"):
        fit(ModelCheckpoint(tmp_path / "new"))


class Watched:
    """Looks, before and after each operation that changes a folder, which checkpoints in it can be loaded."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder, self.seen = folder, []
        for name in ("replace", "remove", "unlink", "symlink", "rename", "rmdir"):
            monkeypatch.setattr(os, name, self.looking(getattr(os, name)))

    def looking(self, operation):
        def look_around(*args, **kwargs):
            self.look()
            answer = operation(*args, **kwargs)
            self.look()
            return answer

        return look_around

    def look(self):
        names = {path.name for path in self.folder.glob("*.ckpt")}
        for name in names:
            torch.load(self.folder / name, weights_only=True)  # nothing is dangling, nothing is half written
        self.seen.append(names)


@pytest.mark.parametrize("save_last", [True, "link"])
@pytest.mark.parametrize("version_counter", [True, False])
def test_at_every_moment_of_training_a_checkpoint_can_be_loaded(save_last, version_counter, tmp_path, monkeypatch):
    saving = ModelCheckpoint(
        tmp_path, every_n_train_steps=1, save_last=save_last, enable_version_counter=version_counter
    )
    watched = Watched(tmp_path, monkeypatch)
    fit(saving)
    assert len(watched.seen) > 20
    begun = next(i for i, names in enumerate(watched.seen) if names)
    assert all(watched.seen[begun:])
    assert any("last.ckpt" in names for names in watched.seen)
    assert sorted(os.listdir(tmp_path)) == ["epoch=2-step=6.ckpt", "last.ckpt"]
