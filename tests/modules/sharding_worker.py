"""What each of two processes does for test_sharding.py, started once; writes what it saw to a file of its own."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributions import Bernoulli, Independent

sys.path.insert(0, str(Path(__file__).parents[1]))

from lightning_estimators.baselines import LearnedBaseline
from lightning_estimators.estimators import REBAR, REINFORCE, RELAX, Concrete, RelaxedREBAR, StochasticBackprop
from lightning_estimators.modules import EstimatorModule
from modules.ddp_worker import given_noise
from modules.tiny import Recorder, Rows, rows, trainer

# With its usual eps, Adam's first steps are signs of gradients, which rounding decides where they are almost 0.
ADAM = functools.partial(torch.optim.Adam, lr=0.01, eps=1e-3)
ESTIMATORS = {
    "REINFORCE": REINFORCE,
    "REINFORCE-learned": lambda: REINFORCE(LearnedBaseline()),
    "Concrete": Concrete,
    "REBAR-fixed": lambda: REBAR(learn_temperature=False, learn_eta=False),
    "RELAX": RELAX,
    "StochasticBackprop": StochasticBackprop,
}
REFUSED = {"REBAR": REBAR, "RelaxedREBAR": RelaxedREBAR}


class Sharded(EstimatorModule):
    """An autoencoder whose encoder and decoder are sharded, and the estimator's network where `networks` says so."""

    def __init__(self, estimator, *, networks=False):
        super().__init__(optimizer=ADAM, surrogate_optimizer=ADAM)
        torch.manual_seed(7)
        self.encoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6))
        self.decoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
        self.estimator = estimator
        self.networks = networks
        estimator.prepare(self.q(torch.zeros(2, 4)), torch.zeros(2, 4))

    def q(self, x):
        return Independent(Bernoulli(logits=self.encoder(x)), 1)

    def configure_model(self):
        if self.device_mesh is None:  # one process
            return
        surrogates = [m for m in self.estimator.modules() if isinstance(m, nn.Linear)] if self.networks else []
        for part in (self.encoder, self.decoder, *surrogates):
            fully_shard(part, mesh=self.device_mesh["data_parallel"])

    def loss(self, batch):
        return self.estimator(self.q(batch), lambda b: (self.decoder(b) - batch).square().sum(-1), batch)


def whole(tensor):
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()


def train(name, rank, world_size, *, ckpt_path=None, save=None, max_steps=3, noise=None, **options):
    """Weights after three steps under given noise, and the losses."""
    torch.manual_seed(0)  # for networks that an estimator builds
    module, recorder = Sharded((ESTIMATORS | REFUSED)[name](), **options), Recorder()
    shared = {}
    if world_size > 1:
        strategy = ModelParallelStrategy(data_parallel_size=world_size, tensor_parallel_size=1)
        shared = {"strategy": strategy, "devices": world_size, "use_distributed_sampler": False}
    made = trainer(max_steps=max_steps, logger=recorder, gradient_clip_val=0.5, **shared)
    data = Rows(rows(), rank, world_size)
    with given_noise(rank, world_size) if noise is None else noise:
        made.fit(module, data, ckpt_path=ckpt_path)
    if save is not None:
        made.save_checkpoint(save)
    return {
        "weights": {parameter: whole(tensor) for parameter, tensor in module.named_parameters()},
        "sharded": [parameter for parameter, tensor in module.named_parameters() if hasattr(tensor, "full_tensor")],
        "states": len(made.optimizers[0].state),
        "losses": [metrics["train/loss"] for _, metrics in recorder.logged if "train/loss" in metrics],
    }


def main(folder):
    warnings.simplefilter("ignore")
    folder, rank = Path(folder), int(os.environ["LOCAL_RANK"])
    seen = {}
    for name in ESTIMATORS:
        seen[name] = train(name, rank, 2)
    own_noise = contextlib.nullcontext()
    os.environ["PL_GLOBAL_SEED"] = "3"
    train("RELAX", rank, 2, save=folder / "two", max_steps=2, noise=own_noise)
    seen["resumed"] = train("RELAX", rank, 2, ckpt_path=folder / "two", max_steps=4, noise=own_noise)
    seen["uninterrupted"] = train("RELAX", rank, 2, max_steps=4, noise=own_noise)
    for name, options in {
        "REBAR": {},
        "RelaxedREBAR": {},
        "RELAX": {"networks": True},
        "REINFORCE-learned": {"networks": True},
    }.items():
        try:
            seen[f"{name} refused"] = train(name, rank, 2, **options)
        except ValueError as error:
            seen[f"{name} refused"] = str(error)
    torch.save(seen, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1])
