import io
import warnings
from typing import ClassVar

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torchvision.utils import make_grid

from lightning_estimators.callbacks import Reconstructions
from lightning_estimators.estimators import REBAR
from lightning_estimators.modules import DiscreteLatentModel

TAGS = ["images/inputs", "images/reconstructions", "images/prior_samples"]
IMAGES = torch.linspace(0, 1, 12 * 12).view(12, 1, 3, 4)


class Negative(pl.LightningModule):
    """Reconstructs an image as its negative; draws noise; notes the mode it is called in."""

    modes: ClassVar[list] = []  # of the class: what an instance notes while it is watched is undone

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.frozen = nn.Dropout().eval()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        assert self.training
        assert not self.frozen.training
        return self.weight.square().sum()

    def validation_step(self, batch, batch_idx):
        pass

    def reconstruct(self, x):
        self.modes.append((self.training, torch.is_grad_enabled()))
        return 1 - x

    def sample_prior(self, n):
        return torch.rand(n, 1, 3, 4)


def data(wrap=lambda images: images):
    batches = [wrap(batch) for batch in IMAGES.split(4)]
    return torch.utils.data.DataLoader(batches, batch_size=None)


@pytest.fixture(autouse=True)
def forget_modes():
    Negative.modes.clear()


def fit(module, callback, logger, loader=None, *, validate=True, **options):
    loader = data() if loader is None else loader
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            **{"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1, **options},
            logger=logger,
            callbacks=[callback],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(module, loader, loader if validate else None)
    return trainer


def events(logger):
    return EventAccumulator(logger.log_dir, size_guidance={"images": 0}).Reload()


def steps(logger):
    found = {tag: [event.step for event in events(logger).Images(tag)] for tag in TAGS}
    assert len({tuple(at) for at in found.values()}) == 1
    return found[TAGS[0]]


def picture(event):
    return torch.from_numpy(np.array(Image.open(io.BytesIO(event.encoded_image_string)))).permute(2, 0, 1) / 255


def test_writes_the_right_pictures_at_validation_end(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    module = Negative()
    fit(module, Reconstructions(3), logger)
    # Three batches an epoch: validation logs its scalars at steps 2 and 5, and the last one is not written twice.
    assert steps(logger) == [2, 5]
    found = {tag: [picture(event) for event in events(logger).Images(tag)] for tag in TAGS}
    shown = IMAGES[:3]
    for epoch in range(2):
        for tag, expected in {TAGS[0]: shown, TAGS[1]: 1 - shown}.items():
            grid = make_grid(expected, nrow=2, pad_value=0.5)
            torch.testing.assert_close(found[tag][epoch], grid, atol=1 / 255, rtol=0)
    assert torch.equal(found[TAGS[2]][0], found[TAGS[2]][1])  # the same noise under the same weights
    assert found[TAGS[2]][0].std() > 0.1
    assert Negative.modes == [(False, False)] * 2


@pytest.mark.parametrize(
    ("every", "epochs", "expected"), [(1, 3, [2, 5, 8]), (2, 3, [5, 8]), (2, 4, [5, 11]), (5, 2, [5])]
)
def test_every_n_epochs_and_at_the_end(every, epochs, expected, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    fit(Negative(), Reconstructions(4, every), logger, max_epochs=epochs)
    assert steps(logger) == expected


def test_without_validation_writes_at_the_end(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    fit(Negative(), Reconstructions(4), logger, validate=False)
    assert steps(logger) == [5]
    first = picture(events(logger).Images(TAGS[0])[0])
    torch.testing.assert_close(first, make_grid(IMAGES[:4], nrow=2, pad_value=0.5), atol=1 / 255, rtol=0)


def test_first_validation_replaces_training_images(tmp_path):
    class Shifted(Negative):
        def val_dataloader(self):
            return data(lambda x: 1 - x)

    # Validation comes after the second epoch of three steps; the first run ends before.
    for stop, expected in {2: IMAGES[:4], 6: 1 - IMAGES[:4]}.items():
        logger = TensorBoardLogger(tmp_path)
        options = {"max_steps": stop, "num_sanity_val_steps": 0, "check_val_every_n_epoch": 2}
        fit(Shifted(), Reconstructions(4), logger, validate=False, **options)
        assert steps(logger) == [stop - 1]
        shown = picture(events(logger).Images(TAGS[0])[0])
        torch.testing.assert_close(shown, make_grid(expected, nrow=2, pad_value=0.5), atol=1 / 255, rtol=0)


def test_no_images_outside_fit(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    trainer = pl.Trainer(logger=logger, callbacks=[Reconstructions()], enable_progress_bar=False, accelerator="cpu")
    trainer.validate(Negative(), data(), verbose=False)
    assert events(logger).Tags()["images"] == []


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: (x, torch.zeros(len(x))),
        lambda x: [x],
        lambda x: {"label": torch.zeros(len(x)), "image": x},
    ],
    ids=["tuple", "list", "mapping"],
)
def test_batches_of_other_forms(wrap, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    fit(Negative(), Reconstructions(4), logger, data(wrap), max_epochs=1)
    assert steps(logger) == [2]


@pytest.mark.parametrize(
    ("wrap", "given"),
    [
        (lambda x: x.flatten(1), r"a tensor of shape \(4, 12\)"),
        (lambda x: {"left": x, "right": x}, r"'left': a tensor of shape \(4, 1, 3, 4\), 'right'"),
        (lambda x: ["label", x], "a list of a str, a tensor"),
    ],
)
def test_batches_without_images_are_refused(wrap, given, tmp_path):
    with pytest.raises(ValueError, match=rf"{given}.*[Oo]verride `Reconstructions.images"):
        fit(Negative(), Reconstructions(4), TensorBoardLogger(tmp_path), data(wrap))


def test_images_can_be_overridden(tmp_path):
    class Right(Reconstructions):
        def images(self, batch):
            return batch["right"]

    logger = TensorBoardLogger(tmp_path)
    fit(Negative(), Right(4), logger, data(lambda x: {"left": x, "right": 1 - x}), max_epochs=1)
    first = picture(events(logger).Images(TAGS[0])[0])
    torch.testing.assert_close(first, make_grid(1 - IMAGES[:4], nrow=2, pad_value=0.5), atol=1 / 255, rtol=0)


def test_refuses_modules_that_cannot_draw(tmp_path):
    class Mute(Negative):
        sample_prior = None

    with pytest.raises(TypeError, match="Mute has no sample_prior"):
        fit(Mute(), Reconstructions(), TensorBoardLogger(tmp_path))


def test_refuses_pictures_of_another_shape(tmp_path):
    class Flat(Negative):
        def sample_prior(self, n):
            return torch.rand(n, 12)

    with pytest.raises(ValueError, match=r"images/prior_samples must be images.*got \(4, 12\)"):
        fit(Flat(), Reconstructions(), TensorBoardLogger(tmp_path))


@pytest.mark.parametrize("options", [{"num_images": 0}, {"num_images": 1.5}, {"every_n_epochs": 0}])
def test_refuses_impossible_options(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"integer {name} |{name} must be a positive integer"):
        Reconstructions(**options)


@pytest.mark.parametrize("with_csv", [False, True])
def test_warns_once_without_tensorboard(with_csv, tmp_path):
    module = Negative()
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=CSVLogger(tmp_path) if with_csv else False,
        callbacks=[Reconstructions()],
        enable_progress_bar=False,
        enable_checkpointing=False,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, data(), data())
    assert len([warning for warning in caught if "no TensorBoardLogger" in str(warning.message)]) == 1
    assert Negative.modes == []


def test_fast_dev_run(tmp_path):
    fit(Negative(), Reconstructions(), True, fast_dev_run=True)


def test_discrete_latent_model(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    model = DiscreteLatentModel(REBAR(), image_shape=(1, 3, 4), num_latents=[3], data_mean=0.5)
    fit(model, Reconstructions(9), logger, max_epochs=1, precision="bf16-mixed")
    assert steps(logger) == [2]
    assert picture(events(logger).Images(TAGS[1])[0]).shape == (3, 2 * 5 + 2, 2 * 6 + 2)
