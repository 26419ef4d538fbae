"""Modules are built again from their checkpoints, however they were made."""

import functools

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent

from lightning_estimators.baselines import LearnedBaseline
from lightning_estimators.cli import EstimatorCLI
from lightning_estimators.configurable import Configurable
from lightning_estimators.datamodules import Digits
from lightning_estimators.estimators import REBAR, REINFORCE, RELAX, GradientEstimator
from lightning_estimators.modules import DiscreteLatentModel, EstimatorModule

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
SHORT = [
    *("--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "1", "--trainer.accelerator", "cpu"),
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Network(nn.Sequential):
    """A user's network, which records nothing."""

    def __init__(self, width: int = 3):
        super().__init__(nn.LazyLinear(width), nn.Tanh(), nn.Linear(width, 1))


class RecordedNetwork(Configurable, Network):
    pass


class Coins(EstimatorModule):
    """A user's module, without a word about checkpoints."""

    def __init__(self, estimator: GradientEstimator, size: int = 3, lr: float = 0.1):
        super().__init__(optimizer=functools.partial(torch.optim.SGD, lr=lr))
        self.logits = nn.Parameter(torch.zeros(size))
        self.estimator = estimator
        self.estimator.prepare(self.q(1))

    def q(self, n):
        return Independent(Bernoulli(logits=self.logits.expand(n, -1)), 1)

    def loss(self, batch):
        return self.estimator(self.q(len(batch)), lambda b: (b - 0.4).square().sum(-1))

    def test_step(self, batch, batch_idx):
        self.log("test/cost", (self.logits.sigmoid() - 0.4).square().sum())


class SelfSavingCoins(Coins):
    """One that does what other Lightning modules do."""

    def __init__(self, estimator: GradientEstimator, size: int = 4):
        super().__init__(estimator, size)
        self.save_hyperparameters()


BATCHES = torch.zeros(6, 5, 1)


def fit(module, steps=3, **options):
    trainer = pl.Trainer(max_steps=steps, enable_checkpointing=False, **QUIET)
    trainer.fit(module, BATCHES, **options)
    trainer.save_checkpoint("made.ckpt")
    return trainer


def assert_same(one, other):
    assert type(one) is type(other)
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=0, atol=0)


def discrete(estimator, **options):
    model = DiscreteLatentModel(
        estimator,
        Digits.image_shape,
        num_latents=(4, 3),
        optimizer=functools.partial(torch.optim.Adam, lr=0.02),
        test_samples=2,
        **options,
    )
    trainer = pl.Trainer(max_steps=2, limit_val_batches=1, enable_checkpointing=False, **QUIET)
    trainer.fit(model, Digits(batch_size=20, seed=3))
    trainer.save_checkpoint("made.ckpt")
    return model


def test_checkpoint_from_python_needs_no_arguments():
    model = discrete(REINFORCE(LearnedBaseline(normalize=True), num_samples=2))
    loaded = DiscreteLatentModel.load_from_checkpoint("made.ckpt", weights_only=True)
    assert_same(model, loaded)
    assert loaded.estimators[1].num_samples == 2
    assert loaded.optimizer([nn.Parameter(torch.zeros(1))]).defaults["lr"] == 0.02


def test_a_loaded_module_writes_checkpoints_that_load():
    discrete(RELAX())
    again = DiscreteLatentModel.load_from_checkpoint("made.ckpt")
    trainer = pl.Trainer(max_steps=1, limit_val_batches=0, enable_checkpointing=False, **QUIET)
    trainer.fit(again, Digits())
    trainer.save_checkpoint("again.ckpt")
    twice = DiscreteLatentModel.load_from_checkpoint("again.ckpt")
    assert_same(again, twice)
    assert twice.optimizer([nn.Parameter(torch.zeros(1))]).defaults["lr"] == 0.02


def test_checkpoint_from_the_command_line_needs_no_arguments():
    options = ["--trainer.max_steps", "2", "--model.estimator", "RELAX", "--model.num_latents", "[4]"]
    cli = EstimatorCLI(["fit", *SHORT, *options, "--model.optimizer", "SGD", "--model.optimizer.lr", "0.3"])
    path = cli.trainer.checkpoint_callback.last_model_path
    loaded = DiscreteLatentModel.load_from_checkpoint(path, weights_only=True)
    assert_same(cli.model, loaded)
    optimizer = loaded.optimizer([nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["lr"] == 0.3


@pytest.mark.parametrize("kind", [Coins, SelfSavingCoins])
def test_a_users_module(kind):
    module = kind(RELAX(RecordedNetwork(2)), size=4)
    fit(module)
    assert_same(module, kind.load_from_checkpoint("made.ckpt", weights_only=True))


def test_arguments_given_when_loading_win():
    fit(Coins(REBAR(), 3))
    assert Coins.load_from_checkpoint("made.ckpt", lr=0.7).hparams["lr"] == 0.7
    with pytest.raises(RuntimeError, match="size mismatch"):
        Coins.load_from_checkpoint("made.ckpt", size=5)


def test_plain_network_resumes_and_tests_but_must_be_given_to_load():
    half = Coins(RELAX(Network()))
    fit(half, 3)
    resumed = Coins(RELAX(Network()))
    trainer = fit(resumed, 6, ckpt_path="made.ckpt")
    assert trainer.global_step == 6
    tested = Coins(RELAX(Network()))
    pl.Trainer(enable_checkpointing=False, **QUIET).test(tested, BATCHES, ckpt_path="made.ckpt", verbose=False)
    assert_same(resumed, tested)

    with pytest.raises(
        ValueError, match=r"could not keep estimator .*estimator\.surrogate was a .*Network.*estimator="
    ):
        Coins.load_from_checkpoint("made.ckpt")
    assert_same(resumed, Coins.load_from_checkpoint("made.ckpt", estimator=RELAX(Network())))
    with open("made.ckpt", "rb") as file, pytest.raises(ValueError, match="could not keep estimator"):
        Coins.load_from_checkpoint(file)


def test_a_lambda_must_be_given_to_load():
    model = discrete(REBAR(), lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1))
    with pytest.raises(ValueError, match=r"could not keep lr_scheduler .*<lambda>"):
        DiscreteLatentModel.load_from_checkpoint("made.ckpt")
    scheduler = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1)
    assert_same(model, DiscreteLatentModel.load_from_checkpoint("made.ckpt", lr_scheduler=scheduler))


def test_the_command_line_tests_a_checkpoint_from_python():
    model = discrete(REINFORCE(LearnedBaseline()))
    cli = EstimatorCLI(["test", *SHORT, "--ckpt_path", "made.ckpt", "--data.eval_batch_size", "9"])
    assert_same(model, cli.model)
    assert (cli.datamodule.seed, cli.datamodule.batch_size, cli.datamodule.eval_batch_size) == (3, 20, 9)
    assert cli.model.test_samples == 2
