"""SIGTERM: a checkpoint from which the run continues exactly, and status 143."""

import functools
import os
import signal
import socket

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from modules.tiny import Recorder, Rows, Tiny, rows, same, state, trainer

from lightning_estimators.callbacks import SaveOnSigterm
from lightning_estimators.estimators import REBAR

pytestmark = pytest.mark.filterwarnings("ignore")

STEP_LR = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.7)
PLATEAU = functools.partial(ReduceLROnPlateau, monitor="train/loss", patience=0, factor=0.5, threshold=1e9)


class Terminated(pl.Callback):
    """Sends the process SIGTERM at the n-th call of a hook."""

    def __init__(self, hook, at):
        self.calls = 0
        setattr(self, hook, functools.partial(self.count, at))

    def count(self, at, *_):
        self.calls += 1
        if self.calls == at:
            os.kill(os.getpid(), signal.SIGTERM)


def run(folder, *callbacks, ckpt_path=None, lr_scheduler=STEP_LR, saving=None, **options):
    pl.seed_everything(5, verbose=False)
    module, recorder = Tiny(REBAR(), lr_scheduler=lr_scheduler, lr_scheduler_interval="step"), Recorder()
    saving = saving or ModelCheckpoint(folder, every_n_epochs=100)
    options = {"max_epochs": 2, "val_check_interval": 2, "num_sanity_val_steps": 2, "logger": recorder} | options
    made = trainer(callbacks=[saving, SaveOnSigterm(), *callbacks], enable_checkpointing=True, **options)
    made.fit(module, Rows(rows(batches=5)), rows(batches=3, seed=1), ckpt_path=ckpt_path)
    return state(module), recorder


def interrupted(*args, **options):
    with pytest.raises(SystemExit) as ended:
        run(*args, **options)
    assert ended.value.code == 143


@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate_grad_batches": 2}, {"lr_scheduler": PLATEAU}],
    ids=["plain", "accumulating", "plateau"],
)
@pytest.mark.parametrize(
    ("hook", "at"),
    [("on_train_batch_start", at) for at in (1, 2, 5, 6, 10)]
    # Two batches are the sanity check's; then come the first, the last, the second, and the last of all.
    + [("on_validation_batch_start", at) for at in (3, 5, 7, 14)]
    + [("on_train_epoch_end", at) for at in (1, 2)],
)
def test_the_run_continues_bit_for_bit(hook, at, options, tmp_path):
    final, recorder = run(tmp_path / "whole", **options)
    interrupted(tmp_path / "cut", Terminated(hook, at), **options)
    assert os.listdir(tmp_path / "cut") == ["last.ckpt"]
    resumed, later = run(tmp_path / "cut", ckpt_path=tmp_path / "cut" / "last.ckpt", **options)
    assert same(resumed, final)
    assert all(entry in recorder.logged for entry in later.logged)


def test_nothing_is_saved_before_training(tmp_path):
    interrupted(tmp_path, Terminated("on_validation_batch_start", 1))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("function", ["validate", "test"])
def test_nothing_is_saved_outside_of_training(function, tmp_path):
    class Tested(Tiny):
        def test_step(self, batch, batch_idx):
            self.loss(batch)

    callbacks = [SaveOnSigterm(tmp_path), Terminated(f"on_{function.replace('ate', 'ation')}_batch_start", 1)]
    with pytest.raises(SystemExit) as ended:
        getattr(trainer(callbacks=callbacks), function)(Tested(REBAR()), rows())
    assert ended.value.code == 143
    assert os.listdir(tmp_path) == []


def test_it_takes_the_place_of_the_last_checkpoint_that_is_kept(tmp_path):
    for save_last in (True, "link"):
        folder = tmp_path / str(save_last)
        saving = ModelCheckpoint(folder, every_n_train_steps=2, save_last=save_last)
        interrupted(folder, Terminated("on_train_batch_start", 7), saving=saving)
        assert sorted(os.listdir(folder)) == ["epoch=1-step=6.ckpt", "last.ckpt"]
        assert [torch.load(path)["global_step"] for path in sorted(folder.iterdir())] == [6, 7]
        run(folder, ckpt_path="last", saving=ModelCheckpoint(folder, every_n_train_steps=2, save_last=save_last))
        assert torch.load(folder / "last.ckpt")["global_step"] == 10


def test_without_model_checkpoints_it_saves_where_it_is_told(tmp_path):
    for given, saved in ((None, []), (tmp_path / "new", ["last.ckpt"])):
        made = trainer(callbacks=[SaveOnSigterm(given), Terminated("on_train_batch_start", 2)], max_epochs=1)
        with pytest.raises(SystemExit) as ended:
            made.fit(Tiny(REBAR()), rows())
        assert ended.value.code == 143
        assert [path.name for path in tmp_path.rglob("*.ckpt")] == saved


def test_other_exceptions_save_nothing(tmp_path):
    class Fails(pl.Callback):
        def on_train_batch_end(self, *_):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        run(tmp_path, Fails())
    assert os.listdir(tmp_path) == []


def test_two_processes_stop_at_the_same_batch(tmp_path):
    """As under `torchrun`: the second receives the signal while it computes the third step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    class Rank1Terminated(Terminated):
        def count(self, at, trainer, *_):
            if trainer.global_rank == 1:
                super().count(at)

    def fit(rank):
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
        place |= {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "TORCHELASTIC_RUN_ID": "test"}
        os.environ.update({name: str(value) for name, value in place.items()})
        run(tmp_path, Rank1Terminated("on_train_batch_start", 3), strategy="ddp", devices=2)

    children = [fork(functools.partial(fit, rank)) for rank in (0, 1)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [143, 143]
    assert [(path.name, torch.load(path)["global_step"]) for path in tmp_path.iterdir()] == [("last.ckpt", 3)]


def fork(action):
    """Run an action in a process of its own, which exits as a script would."""
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(60)  # processes that wait for each other end by this signal instead
    status = 99
    try:
        action()
        status = 0
    except SystemExit as exiting:
        status = exiting.code
    finally:
        os._exit(status)
