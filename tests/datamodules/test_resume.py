"""The loader under Lightning's fit loop: every image is seen in the order of an uninterrupted run."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_estimators.datamodules import Digits


class Recorder(pl.LightningModule):
    """Remembers the batches it was trained on, and disturbs the global noise."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(64, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((batch_idx, batch))
        torch.rand(len(self.seen))
        return self.linear(batch.flatten(1)).square().mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class EpochEndCheckpoint(ModelCheckpoint):
    """Of another name, since Lightning refuses two of one class that save equally often."""


def fit(ckpt_path=None, callbacks=(), save_after=None, **options):
    model = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(callbacks),
        callbacks=list(callbacks),
        **{"limit_val_batches": 1, "num_sanity_val_steps": 0, **options},
    )
    trainer.fit(model, Digits(batch_size=400), ckpt_path=ckpt_path)  # four batches in an epoch
    if save_after is not None:
        trainer.save_checkpoint(save_after)
    return model.seen


def same(one, other):
    return [index for index, _ in one] == [index for index, _ in other] and all(
        torch.equal(a, b) for (_, a), (_, b) in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(
    "length",
    [{"max_epochs": 3}, {"max_epochs": 3, "limit_train_batches": 3}, {"max_steps": 10, "max_epochs": -1}],
    ids=["epochs", "limited", "steps"],
)
def test_continues_from_every_checkpoint(length, tmp_path):
    whole = fit(**length)
    savers = [
        ModelCheckpoint(tmp_path, "step-{step}", save_top_k=-1, every_n_train_steps=1),
        ModelCheckpoint(tmp_path, "validated-{step}", save_top_k=-1, every_n_epochs=1),
        EpochEndCheckpoint(tmp_path, "epoch-{step}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True),
    ]
    assert same(fit(callbacks=savers, **length), whole)
    checkpoints = list(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) == len(whole) + 6
    for path in checkpoints:
        step = int(path.stem.split("=")[1])
        assert same(fit(ckpt_path=path, **length), whole[step:]), path.stem


@pytest.mark.parametrize("stop", [2, 4, 5])
def test_continues_where_max_steps_stopped(stop, tmp_path):
    whole = fit(max_steps=10, max_epochs=-1)
    assert same(fit(max_steps=stop, max_epochs=-1, save_after=tmp_path / "stopped.ckpt"), whole[:stop])
    assert same(fit(max_steps=10, max_epochs=-1, ckpt_path=tmp_path / "stopped.ckpt"), whole[stop:])


def test_overfitting_repeats_the_same_images():
    (_, first), (_, second) = fit(max_epochs=2, overfit_batches=1)
    assert not torch.equal(first, second)  # pixels are still drawn anew
    data = Digits()
    data.setup()
    shown = data.splits.train[:400] / 255
    for batch in (first, second):
        assert (batch <= (shown > 0)).all()  # a pixel can be on only where these images have ink
        assert (batch >= (shown == 1)).all()


def test_checkpoints_know_the_data_and_can_be_read_safely(tmp_path):
    fit(max_epochs=1, limit_train_batches=1, save_after=tmp_path / "data.ckpt")
    checkpoint = torch.load(tmp_path / "data.ckpt", weights_only=True)
    assert checkpoint["datamodule_hyper_parameters"]["batch_size"] == 400
    restored = Digits.load_from_checkpoint(tmp_path / "data.ckpt")
    assert restored.batch_size == 400
