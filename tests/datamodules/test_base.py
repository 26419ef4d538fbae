import types
from pathlib import Path

import pytest
import torch

from lightning_estimators.datamodules import MNIST, Batches, Digits, ImageDataModule, Splits

GREYS = torch.tensor([0, 60, 127, 128, 200, 255], dtype=torch.uint8)


class Greys(ImageDataModule):
    """Six grey levels at six pixels, the same in all images."""

    image_shape = (1, 2, 3)

    def load(self):
        image = GREYS.view(1, 1, 2, 3)
        return Splits(*(image.repeat(count, 1, 1, 1) for count in (2000, 300, 100)))


def loaders(data):
    return [data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()]


def everything(loader):
    return torch.cat(list(loader))


def make(**options):
    data = Greys(**options)
    data.setup("fit")
    return data


def test_none_keeps_grey_levels():
    data = make(binarization="none")
    for loader in loaders(data):
        assert torch.equal(everything(loader)[0].flatten(), GREYS.float() / 255)
    assert torch.equal(data.mean.flatten(), GREYS.float() / 255)


def test_threshold_is_above_one_half():
    data = make(binarization="threshold")
    for loader in loaders(data):
        assert everything(loader)[0].flatten().tolist() == [0, 0, 0, 1, 1, 1]
    assert data.mean.flatten().tolist() == [0, 0, 0, 1, 1, 1]


def test_static_is_drawn_once():
    data = make(binarization="static")
    for loader in loaders(data):
        images = everything(loader)
        assert set(images.unique().tolist()) == {0.0, 1.0}
    train = data.train_dataloader()
    first, second = everything(train), everything(train)
    assert torch.equal(first.sum(0), second.sum(0))  # other order, same images
    torch.testing.assert_close(data.mean, first.mean(0))
    assert torch.equal(make(binarization="static").splits.train, data.splits.train)
    assert not torch.equal(make(binarization="static", seed=1).splits.train, data.splits.train)


def test_dynamic_resamples_training_images_only():
    data = make(binarization="dynamic")
    train = data.train_dataloader()
    first, second = everything(train), everything(train)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(first.sum(0), second.sum(0))
    for name in ("val", "test", "predict"):
        loader = getattr(data, f"{name}_dataloader")()
        once, twice = everything(loader), everything(loader)
        assert torch.equal(once, twice)
        assert set(once.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(data.mean.flatten(), GREYS.float() / 255)
    # 5 standard errors of the mean of 4000 draws
    assert ((torch.cat([first, second]).mean(0) - data.mean).abs() < 5 * 0.5 / 4000**0.5).all()


def test_evaluation_images_are_the_same_for_static_and_dynamic_and_any_batch_size():
    static, dynamic = make(binarization="static"), make(binarization="dynamic", eval_batch_size=7)
    for one, other in zip(loaders(static)[1:], loaders(dynamic)[1:], strict=True):
        assert torch.equal(everything(one), everything(other))
    assert not torch.equal(static.splits.val[:100], static.splits.test)


def test_batch_sizes_and_shapes():
    data = make(batch_size=300, eval_batch_size=70)
    assert [len(loader) for loader in loaders(data)] == [7, 5, 2, 2]
    assert [len(batch) for batch in data.train_dataloader()] == [300] * 6 + [200]
    assert [tuple(batch.shape) for batch in data.test_dataloader()] == [(70, 1, 2, 3), (30, 1, 2, 3)]


def test_loaders_take_the_shard_and_the_limits_of_the_trainer():
    data = make(batch_size=10)
    data.trainer = types.SimpleNamespace(global_rank=1, world_size=3, overfit_batches=0.0, limit_train_batches=5)
    for loader in loaders(data):
        assert (loader.rank, loader.world_size) == (1, 3)
    train = data.train_dataloader()
    assert (train.pad, train.shuffle, train.limit) == (True, True, 5)
    assert not data.test_dataloader().pad
    data.trainer.overfit_batches = 2
    assert not data.train_dataloader().shuffle


def test_setup_loads_once_and_for_all_stages(monkeypatch):
    data = Greys()
    data.setup("test")
    assert data.mean.shape == data.image_shape
    monkeypatch.setattr(data, "load", lambda: pytest.fail("loaded twice"))
    data.setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"binarization": "dynamc"}, "one of dynamic, static, threshold, none, got 'dynamc'"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer of at least 1, got 2.5"),
        ({"batch_size": True}, "batch_size must be an integer of at least 1, got True"),
        ({"eval_batch_size": -1}, "eval_batch_size must be an integer of at least 1, got -1"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
    ],
)
def test_refuses_at_construction(options, message):
    with pytest.raises(ValueError, match=message):
        Greys(**options)


def test_refuses_images_of_another_shape_or_type():
    class Wrong(Greys):
        def load(self):
            return super().load()._replace(val=torch.zeros(4, 1, 3, 3, dtype=torch.uint8))

    with pytest.raises(ValueError, match=r"the val images must be bytes .* \(1, 2, 3\).* got torch.uint8 of shape"):
        Wrong().setup()


def test_says_when_setup_was_forgotten():
    with pytest.raises(RuntimeError, match=r"call Greys.setup\(\)"):
        Greys().train_dataloader()
    with pytest.raises(RuntimeError, match=r"call Greys.setup\(\)"):
        _ = Greys().mean


def test_hyperparameters_are_plain(tmp_path):
    data = MNIST(Path(tmp_path), batch_size=7, seed=3)
    assert dict(data.hparams) == {
        "root": str(tmp_path),
        "batch_size": 7,
        "eval_batch_size": 100,
        "binarization": "dynamic",
        "seed": 3,
        "download": False,
    }
    path = tmp_path / "hparams.pt"
    torch.save(dict(data.hparams), path)
    assert torch.load(path, weights_only=True)["root"] == str(tmp_path)


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert MNIST("~/data").root == str(tmp_path / "data")


def test_warns_when_a_checkpoint_knows_another_split():
    with pytest.warns(UserWarning, match=r"Digits\(seed=1\).*Use seed=1"):
        Digits(seed=0).load_state_dict(Digits(seed=1).state_dict())


def test_prepare_data_touches_nothing_unless_asked(tmp_path):
    data = MNIST(tmp_path / "nowhere")
    before = dict(vars(data))
    data.prepare_data()
    assert vars(data) == before
    assert not (tmp_path / "nowhere").exists()


def test_batches_are_exported():
    assert isinstance(make().train_dataloader(), Batches)
