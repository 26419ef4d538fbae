"""The smallest model with an encoder, a decoder and an estimator, and what the tests record of a run."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import Logger
from torch import nn
from torch.distributions import Bernoulli, Independent

from lightning_estimators.modules import EstimatorModule


class Tiny(EstimatorModule):
    """An autoencoder of vectors with binary latents, and a validation loss that draws noise."""

    def __init__(self, estimator, *, features=4, latents=3, **options):
        super().__init__(**options)
        # Weights from a generator of their own: the same in every process and in every test.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            self.encoder = nn.Linear(features, latents)
            self.decoder = nn.Linear(latents, features)
            self.estimator = estimator
            estimator.prepare(self.q(torch.zeros(2, features)), torch.zeros(2, features))

    def q(self, x):
        return Independent(Bernoulli(logits=self.encoder(x)), 1)

    def loss(self, batch):
        x = batch.flatten(1)
        return self.estimator(self.q(x), lambda b: (self.decoder(b.to(x.dtype)) - x).square().sum(-1), x)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch).mean(), sync_dist=True)


class Rows:
    """A loader that can start in the middle: whole batches of one tensor, this process's columns of each."""

    def __init__(self, data, rank=0, world_size=1):
        self.data = data.chunk(world_size, dim=1)[rank]
        self.next = 0

    def __len__(self):
        return len(self.data)

    def __iter__(self):
        for index in range(self.next % len(self.data), len(self.data)):
            self.next = index + 1
            yield self.data[index]

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


def rows(batches=6, size=8, features=4, seed=0):
    """`batches` batches of `size` vectors in [0, 1]."""
    return torch.rand(batches, size, features, generator=torch.Generator().manual_seed(seed))


class Recorder(Logger):
    """Keeps every logged value in memory, by step."""

    def __init__(self):
        super().__init__()
        self.logged = []

    name = "recorder"
    version = 0

    def log_hyperparams(self, params, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.logged.append((step, dict(metrics)))

    def since(self, step):
        """What was logged from a step on."""
        return [(at, metrics) for at, metrics in self.logged if at >= step]


class Gradients(pl.Callback):
    """Keeps the gradient of every parameter at every step, as the optimizers use it."""

    def __init__(self):
        self.steps = []

    def on_train_start(self, trainer, pl_module):
        def keep(*_):  # after clipping, which comes after on_before_optimizer_step
            self.steps.append({n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None})

        trainer.optimizers[0].parts["model"].register_step_pre_hook(keep)


def trainer(tmp_path=None, **options):
    """A quiet Trainer on one CPU process that logs every batch."""
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "default_root_dir": tmp_path,
    }
    return pl.Trainer(**{**defaults, **options})


def state(module):
    """Weights, optimizers and schedulers of a module that was trained."""
    return {
        "weights": {name: tensor.clone() for name, tensor in module.state_dict().items()},
        "optimizers": [optimizer.state_dict() for optimizer in module.trainer.optimizers],
        "schedulers": [config.scheduler.state_dict() for config in module.trainer.lr_scheduler_configs],
    }


def same(a, b):
    """Whether two nested structures are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
