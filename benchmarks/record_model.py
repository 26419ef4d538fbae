"""The models of the table of record, and the one trajectory of training that is frozen at several stages."""

from __future__ import annotations

import fcntl
import functools
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from benchmarks.experiment import Value
from lightning_estimators import datamodules
from lightning_estimators.baselines import LeaveOneOut
from lightning_estimators.datamodules.base import ImageDataModule
from lightning_estimators.datamodules.batches import Batches
from lightning_estimators.estimators import REINFORCE, GradientEstimator
from lightning_estimators.modules import DiscreteLatentModel

__all__ = [
    "BATCH",
    "DATA_NOISE",
    "MODELS",
    "SLOPE",
    "TITLES",
    "Frozen",
    "LeakyModel",
    "Spot",
    "measured_batch",
    "training_batches",
]

SLOPE = 0.3
"""Of LeakyReLU below zero, as in the experiments of Titsias & Shi (2022) and Shi et al. (2022)."""

BATCH = 100

MODELS: dict[str, dict[str, Any]] = {
    "bernoulli_linear": {"num_latents": [200]},
    "bernoulli_nonlinear": {"num_latents": [200], "hidden": [200, 200]},
    "bernoulli_two_layer": {"num_latents": [200, 200]},
    "categorical_nonlinear": {"latent": "categorical", "num_latents": [20], "num_categories": 10, "hidden": [200, 200]},
}
"""Arguments of `DiscreteLatentModel` by the name of the model."""


TITLES = {
    "bernoulli_linear": "200 Bernoulli latents, linear",
    "bernoulli_nonlinear": "200 Bernoulli latents, nonlinear",
    "bernoulli_two_layer": "Two layers of 200 Bernoulli latents, linear",
    "categorical_nonlinear": "20 categorical latents of 10 classes, nonlinear",
}
"""What the page calls the models."""

DATA_NOISE = "other-batches"
"""In the place of an estimator: the variance of the exact gradient over batches of data."""


class LeakyModel(DiscreteLatentModel):
    """A `DiscreteLatentModel` whose hidden layers are LeakyReLU in place of tanh."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for layers in (layer for layer in self.modules() if isinstance(layer, nn.Sequential)):
            for i, layer in enumerate(layers):
                if isinstance(layer, nn.Tanh):
                    layers[i] = nn.LeakyReLU(SLOPE)

    def _has_kinks(self, i: int) -> bool:
        return bool(self.hidden)


class Spot(NamedTuple):
    """A trajectory and a place on it.

    Attributes:
        model: Name of the model.
        data: Name of the data set.
        seed: Of weights, noise and batches.
        stage: Optimizer steps after which the weights are frozen.
        quick: Whether sizes are tiny.
    """

    model: str
    data: str
    seed: int
    stage: int
    quick: bool

    @classmethod
    def of(cls, settings: Mapping[str, Value]) -> Spot:
        """Return the spot that the settings of a run name."""
        s = settings
        return cls(str(s["model"]), str(s["data"]), int(s["seed"]), int(s["stage"]), bool(s.get("quick")))

    def build(self, estimator: GradientEstimator, image_shape: tuple[int, int, int]) -> LeakyModel:
        """Return the untrained model with this estimator."""
        sizes = dict(MODELS[self.model])
        if self.quick:
            small: dict[str, Any] = {"num_latents": [6, 5][: len(sizes["num_latents"])]}
            small |= {"num_categories": 3} if "num_categories" in sizes else {}
            small |= {"hidden": [8, 7]} if "hidden" in sizes else {}
            sizes |= small
        return LeakyModel(estimator, image_shape, optimizer=functools.partial(torch.optim.Adam, lr=1e-3), **sizes)

    def dataset(self, root: str) -> ImageDataModule:
        """Return the data, set up; training images are binarized anew each time they are loaded."""
        return _dataset(self.data, root, self.seed)


class Frozen:
    """The weights of a model at one stage of the trajectory, trained when they are first asked for.

    The trajectory is one run of REINFORCE with the leave-one-out baseline and four samples. Its checkpoints stay in
    the folder, one for each stage that was asked for and one of the last thousand steps, from which training goes on.

    Args:
        spot: Trajectory and stage.
        folder: Of this trajectory.
        data: Of this trajectory.
    """

    def __init__(self, spot: Spot, folder: Path, data: ImageDataModule) -> None:
        self.spot, self.folder, self.data = spot, folder, data
        self._weights: dict[str, Tensor] = {}

    def model(self, estimator: GradientEstimator) -> LeakyModel:
        """Return the frozen model with this estimator, whose own parameters and statistics are as built."""
        made = self.spot.build(estimator, self.data.image_shape)
        made.load_state_dict(made.state_dict() | self._frozen())
        return made

    def _frozen(self) -> dict[str, Tensor]:
        if not self._weights:
            with _locked(self.folder / "lock"):
                path = self.folder / f"{self.spot.stage}.ckpt"
                if not path.exists():
                    self._train(path)
            state = torch.load(path, weights_only=True)["state_dict"]
            self._weights = {name: value for name, value in state.items() if not name.startswith("estimators.")}
        return self._weights

    def _train(self, path: Path) -> None:
        """Go on from the last checkpoint that is not beyond the stage."""
        pl.seed_everything(self.spot.seed, verbose=False)
        model = self.spot.build(REINFORCE(LeaveOneOut(), num_samples=4), self.data.image_shape)
        stems = (other.stem.removeprefix("last-") for other in self.folder.glob("*.ckpt"))
        found = [int(stem) for stem in stems if stem.isdecimal()]  # a run that was terminated leaves `last.ckpt`
        begin = max((step for step in found if step < self.spot.stage), default=None)
        begun = [self.folder / name for name in (f"{begin}.ckpt", f"last-{begin}.ckpt")]
        keep = ModelCheckpoint(
            self.folder, "last-{step}", auto_insert_metric_name=False, every_n_train_steps=1000, save_top_k=1
        )
        with _quiet():
            trainer = pl.Trainer(
                max_steps=self.spot.stage,
                max_epochs=-1,
                accelerator="cpu",
                logger=False,
                callbacks=[keep],
                enable_progress_bar=False,
                enable_model_summary=False,
                limit_val_batches=0,
            )
            trainer.fit(
                model,
                datamodule=self.data,
                ckpt_path=None if begin is None else str(next(file for file in begun if file.exists())),
            )
            if trainer.global_step != self.spot.stage:  # Lightning returns normally when it is interrupted
                raise KeyboardInterrupt
            trainer.save_checkpoint(path)


def measured_batch(frozen: Frozen) -> Tensor:
    """Return the batch at which gradients are measured: training images, binarized once."""
    return next(iter(_batches(frozen, 1)))


def training_batches(frozen: Frozen) -> Iterator[Tensor]:
    """Yield other training batches without end, binarized anew each time."""
    batches = _batches(frozen, 2)
    while True:
        yield from batches


def _batches(frozen: Frozen, use: int) -> Batches:
    seed = 1000 * use + frozen.spot.seed
    return Batches(
        frozen.data.splits.train, BATCH, shuffle=True, resample=frozen.data.binarization == "dynamic", seed=seed
    )


@functools.cache
def _dataset(name: str, root: str, seed: int) -> ImageDataModule:
    """Return data that are read once for all runs of a process."""
    files = {} if name == "Digits" else {"root": root, "binarization": "dynamic"}
    made: ImageDataModule = getattr(datamodules, name)(**files, batch_size=BATCH, seed=seed)
    made.setup("fit")
    return made


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Lightning says of each run."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
