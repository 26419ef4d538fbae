import copy

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_breast_cancer

from lightning_estimators.datamodules import BreastCancer, Rows


def ready(**options):
    data = BreastCancer(**options)
    data.setup()
    return data


def rows(x, y):
    return sorted((*row, label) for row, label in zip(x.tolist(), y.tolist(), strict=True))


def test_splits_are_all_the_examples_once():
    splits = ready().splits
    assert [len(y) for _, y in splits] == [455, 57, 57, 569]
    assert len(splits.train[0]) == BreastCancer.train_size
    parts = [torch.cat(parts) for parts in zip(*splits[:3], strict=True)]
    assert rows(*parts) == rows(*splits.whole)
    x, y = splits.whole
    assert x.shape == (569, BreastCancer.num_features)
    assert x.dtype == y.dtype == torch.float32
    assert {label: int((y == label).sum()) for label in (-1, 1)} == {-1: 212, 1: 357}
    assert torch.equal(y == 1, torch.as_tensor(load_breast_cancer().target == 1))


def test_features_are_standardised_by_the_training_examples():
    splits = ready().splits
    x = splits.train[0].double()
    torch.testing.assert_close(x.mean(0), torch.zeros(30).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(x.var(0, correction=0), torch.ones(30).double(), rtol=0, atol=1e-5)
    # The same map for all: an affine function of the raw features, and not one fitted to all the data.
    raw = torch.as_tensor(load_breast_cancer().data)
    whole = splits.whole[0].double()
    slope = (whole[1] - whole[0]) / (raw[1] - raw[0])
    torch.testing.assert_close(whole, whole[0] + slope * (raw - raw[0]), rtol=0, atol=1e-3)
    assert whole.mean(0).abs().max() > 1e-3


def test_the_seed_decides_the_split_and_the_order():
    assert torch.equal(ready(seed=1).splits.test[0], ready(seed=1).splits.test[0])
    assert rows(*ready(seed=1).splits.test) != rows(*ready(seed=2).splits.test)
    loader = ready().train_dataloader()
    first, second = (torch.cat([y for _, y in loader]) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(torch.cat([y for _, y in ready().train_dataloader()]), first)


def test_labels_stay_with_their_examples():
    data = ready(batch_size=100)
    label = {tuple(row): y for row, y in zip(data.splits.whole[0].tolist(), data.splits.whole[1].tolist(), strict=True)}
    batches = list(data.train_dataloader())
    assert [len(y) for _, y in batches] == [100, 100, 100, 100, 55]
    for x, y in batches:
        assert [label[tuple(row)] for row in x.tolist()] == y.tolist()


def test_evaluation_has_the_split_and_the_whole_data_in_order():
    data = ready(eval_batch_size=200)
    for loaders, split in ((data.val_dataloader(), data.splits.val), (data.test_dataloader(), data.splits.test)):
        for loader, expected in zip(loaders, (split, data.splits.whole), strict=True):
            assert torch.equal(torch.cat([x for x, _ in loader]), expected[0])
    assert torch.equal(torch.cat([y for _, y in data.predict_dataloader()]), data.splits.test[1])


def test_ranks_share_every_example_of_evaluation_exactly_once():
    x, y = ready().splits.whole
    shards = [Rows((x, y), 100, rank=rank, world_size=4) for rank in range(4)]
    assert {len(shard) for shard in shards} == {2}
    seen = [torch.cat(parts) for parts in zip(*(batch for shard in shards for batch in shard), strict=True)]
    assert rows(*seen) == rows(x, y)


class Recorder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(30, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        return self.linear(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(data, ckpt_path=None, callbacks=()):
    model = Recorder()
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(callbacks),
        callbacks=list(callbacks),
    )
    trainer.fit(model, data, ckpt_path=ckpt_path)
    return model.seen


@pytest.mark.parametrize("step", [2, 5, 7])
def test_continues_in_the_middle_of_an_epoch(step, tmp_path):
    saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    whole = fit(BreastCancer(batch_size=100), callbacks=[saver])
    rest = fit(BreastCancer(batch_size=100), ckpt_path=tmp_path / f"step={step}.ckpt")
    assert len(whole) == 15
    assert len(rest) == 15 - step
    for (x, y), (again_x, again_y) in zip(whole[step:], rest, strict=True):
        assert torch.equal(x, again_x)
        assert torch.equal(y, again_y)
    with pytest.warns(UserWarning, match=r"BreastCancer\(seed=0\), this is seed=1"):
        fit(BreastCancer(batch_size=100, seed=1), ckpt_path=tmp_path / f"step={step}.ckpt")


def test_can_be_printed_before_and_after_setup():
    data = BreastCancer(batch_size=7)
    before = str(data)
    data.setup()
    assert str(data) == before == "BreastCancer(batch_size=7, eval_batch_size=100, seed=0)"
    assert str(copy.deepcopy(data)) == before


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"eval_batch_size": 1.5}, {"seed": -1}])
def test_refuses(options):
    with pytest.raises(ValueError, match="must be an integer of at least"):
        BreastCancer(**options)


def test_says_that_setup_comes_first():
    with pytest.raises(RuntimeError, match="setup"):
        BreastCancer().train_dataloader()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [([torch.zeros(3), torch.zeros(2)], "one length"), ([torch.zeros(0, 2)], "no examples"), ([], "one length")],
)
def test_rows_refuse(tensors, message):
    with pytest.raises(ValueError, match=message):
        Rows(tensors, 2)
