"""Images and their means are checked once, and pairs of image and label are taken as torchvision gives them."""

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_estimators.estimators import REINFORCE, Pathwise
from lightning_estimators.modules import ContinuousLatentModel, DiscreteLatentModel
from modules.tiny import trainer

pytestmark = pytest.mark.filterwarnings("ignore")
SHAPE = (1, 2, 2)


def discrete(data_mean=0.5):
    torch.manual_seed(0)
    return DiscreteLatentModel(REINFORCE(), SHAPE, num_latents=[3], data_mean=data_mean, test_samples=2)


def gaussian(data_mean=0.5):
    return ContinuousLatentModel(Pathwise(), SHAPE, num_latents=[3], likelihood="gaussian", data_mean=data_mean)


@pytest.mark.parametrize("value", [-0.01, 1.01, 255.0])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_images_outside_the_range_are_refused_in_the_first_batch(value, mode):
    model = getattr(discrete(), mode)()
    images = torch.rand(5, *SHAPE)
    images[3, 0, 1, 1] = value
    with pytest.raises(ValueError, match=r"DiscreteLatentModel expects the pixels .* \[0, 1\], got pixels from"):
        model.loss(images)
    model.loss(images.new_tensor([0.0, 1.0]).expand(3, 2, 2).mT.reshape(3, *SHAPE))


@pytest.mark.parametrize("images", [torch.ones(5, *SHAPE, dtype=torch.uint8), torch.ones(5, *SHAPE) > 0])
def test_images_of_another_type_are_refused(images):
    with pytest.raises(ValueError, match=rf"floating-point type, got {images.dtype}.*255"):
        discrete().loss(images)


def test_a_gaussian_likelihood_takes_any_image():
    assert gaussian(-3.0).loss(5 * torch.randn(4, *SHAPE)).isfinite().all()


@pytest.mark.parametrize("mean", [7, -0.1, 255.0, float("nan"), [0.1, 0.2, 0.3, 1.5]])
def test_a_mean_outside_the_range_is_refused(mean):
    with pytest.raises(
        ValueError, match=r"the data mean must be in \[0, 1\], as the pixels do, got (7|-0.1|255|nan|1.5)"
    ):
        discrete(mean)


def test_a_gaussian_mean_must_be_finite():
    with pytest.raises(ValueError, match="the data mean must be finite, got inf"):
        gaussian(float("inf"))


class Data(pl.LightningDataModule):
    def __init__(self, train, val, mean):
        super().__init__()
        self.train, self.val, self.mean = train, val, mean

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=4)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=4)


def test_the_mean_of_a_datamodule_is_checked():
    images = torch.rand(8, *SHAPE)
    with pytest.raises(ValueError, match=r"the data mean must be in \[0, 1\]"):
        trainer(max_epochs=1).fit(discrete(None), datamodule=Data(images, images, images.mean(0) * 255))


@pytest.mark.parametrize("which", ["train", "val"])
def test_training_and_validation_images_are_both_checked(which):
    good, bad = torch.rand(8, *SHAPE), 255 * torch.rand(8, *SHAPE)
    data = Data(bad if which == "train" else good, bad if which == "val" else good, torch.tensor(0.5))
    with pytest.raises(ValueError, match="got pixels from"):
        trainer(max_epochs=1).fit(discrete(), datamodule=data)


def test_only_the_first_batches_are_looked_at(monkeypatch):
    seen = []
    monkeypatch.setattr(DiscreteLatentModel, "_check_images", lambda self, x: seen.append(self.training))
    images = torch.rand(12, *SHAPE)
    model = discrete()
    made = trainer(max_epochs=2)
    made.fit(model, datamodule=Data(images, images, None))
    assert seen == [False, True]
    made.validate(model, datamodule=Data(images, images, None))
    assert seen == [False, True, False]


def test_pairs_of_image_and_label_train_like_the_images_alone():
    images, labels = torch.rand(10, *SHAPE), torch.arange(10)
    results = []
    for data in (images, TensorDataset(images, labels)):
        pl.seed_everything(3, verbose=False)
        model = discrete(None)
        made = trainer(max_epochs=2)
        made.fit(model, datamodule=Data(data, data, images.mean(0)))
        (tested,) = made.test(model, DataLoader(data, batch_size=4), verbose=False)
        predicted = made.predict(model, DataLoader(data, batch_size=4))
        results.append((model.state_dict(), dict(made.callback_metrics), tested, predicted[0]["reconstructions"]))
    assert str(results[0]) == str(results[1])


def test_a_batch_without_images_is_refused():
    for batch in ([], {"images": torch.rand(2, *SHAPE)}, torch.rand(2, 3, 3, 3)):
        with pytest.raises(ValueError, match=r"expects a batch to be a tensor of images of shape \('B', 1, 2, 2\)"):
            discrete().loss(batch)
