"""What each of two processes does for test_ddp.py, started once; writes what it saw to a file of its own."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from lightning_estimators.baselines import LearnedBaseline, MovingAverage
from lightning_estimators.datamodules import Digits
from lightning_estimators.estimators import REBAR, REINFORCE, RELAX, Concrete, RelaxedREBAR, StochasticBackprop
from modules.tiny import Gradients, Recorder, Rows, Tiny, rows, state, trainer

SGD = functools.partial(torch.optim.SGD, lr=0.1)
ESTIMATORS = {
    "REBAR": REBAR,
    "RELAX": RELAX,
    "RelaxedREBAR": RelaxedREBAR,
    "StochasticBackprop-sampled": lambda: StochasticBackprop(num_changes=1),
    "StochasticBackprop-sampled-antithetic": lambda: StochasticBackprop(
        num_changes=1, num_samples=2, coupling="antithetic"
    ),
    "Concrete-stratified": lambda: Concrete(num_samples=3, coupling="stratified"),
    "REINFORCE-moving": lambda: REINFORCE(MovingAverage(decay=0.5)),
    "REINFORCE-learned": lambda: REINFORCE(LearnedBaseline(normalize=True)),
}


@contextlib.contextmanager
def given_noise(rank, world_size):
    """The noise of an example depends on the example and the draw, not on the process that draws it."""
    draw, drawn = torch.rand, 0

    def rand(shape, *, dtype, device):
        nonlocal drawn
        drawn += 1
        samples, batch, *event = shape
        generator = torch.Generator().manual_seed(drawn)
        whole = draw(samples, batch * world_size, *event, dtype=dtype, device=device, generator=generator)
        return whole.chunk(world_size, dim=1)[rank]

    torch.rand = rand
    try:
        yield
    finally:
        torch.rand = draw


def gradients(name, rank, world_size, **options):
    """Gradients of three batches, the estimator's buffers, and the logged losses, under given noise."""
    torch.manual_seed(0)  # for networks that a baseline builds
    module = Tiny(ESTIMATORS[name](), optimizer=SGD, surrogate_optimizer=SGD)
    seen, recorder, data = Gradients(), Recorder(), Rows(rows(batches=3), rank, world_size)
    distributed = {"strategy": "ddp", "devices": world_size} if world_size > 1 else {}
    run = trainer(
        max_epochs=1, callbacks=[seen], logger=recorder, use_distributed_sampler=False, **distributed, **options
    )
    with given_noise(rank, world_size):
        run.fit(module, data)
    return {
        "gradients": seen.steps,
        "buffers": dict(module.named_buffers()),
        "losses": [metrics["train/loss"] for _, metrics in recorder.logged],
    }


class Noise(Tiny):
    """Remembers the first draw of every step."""

    def __init__(self):
        super().__init__(REBAR())
        self.drawn = []

    def loss(self, batch):
        with torch.random.fork_rng(devices=[]):
            self.drawn.append(torch.rand(3).tolist())
        return super().loss(batch)


class Bad(Tiny):
    """One example of one process is not finite at the third batch."""

    def loss(self, batch):
        costs = super().loss(batch)
        if self.batches_trained() == 2 and self.global_rank == 1:
            costs = costs * torch.tensor([torch.nan] + [1.0] * (len(costs) - 1))
        return costs


def digits(folder, ckpt_path=None, devices=2, **options):
    pl.seed_everything(3, verbose=False)
    module = Tiny(RELAX(), features=64)
    recorder = Recorder()
    made = trainer(strategy="ddp", devices=devices, logger=recorder, **options)
    made.fit(module, datamodule=Digits(batch_size=100), ckpt_path=ckpt_path)
    made.save_checkpoint(folder / f"digits-{made.global_step}.ckpt")
    return {"state": state(module), "logged": recorder.logged}


def accumulating(folder, ckpt_path=None, **options):
    """Stops in the middle of an accumulation window, where gradients are not yet shared."""
    pl.seed_everything(3, verbose=False)
    module = Tiny(REBAR())
    made = trainer(strategy="ddp", devices=2, use_distributed_sampler=False, accumulate_grad_batches=3, **options)

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 4 and ckpt_path is None:
                trainer.save_checkpoint(folder / "window.ckpt")

    made.callbacks.append(Save())
    made.fit(module, Rows(rows(), made.global_rank, 2), ckpt_path=ckpt_path)
    return {"state": state(module), "steps": made.global_step}


def main(folder):
    warnings.simplefilter("ignore")
    folder, rank = Path(folder), int(os.environ["LOCAL_RANK"])
    seen = {"gradients": {name: gradients(name, rank, 2) for name in ESTIMATORS}}
    seen["accumulated"] = gradients("REBAR", rank, 2, accumulate_grad_batches=2)

    module = Noise()
    os.environ.pop("PL_GLOBAL_SEED", None)
    torch.manual_seed(rank)  # the processes must agree on a seed all the same
    made = trainer(strategy="ddp", devices=2, max_epochs=1, use_distributed_sampler=False)
    made.fit(module, Rows(rows(), rank, 2))
    seen["noise"], seen["seed"] = module.drawn, module.noise_seed()

    seen["whole"] = digits(folder, max_steps=10)
    seen["cut"] = digits(folder, max_steps=4)
    seen["resumed"] = digits(folder, folder / "digits-4.ckpt", max_steps=10)
    seen["window-whole"] = accumulating(folder, max_epochs=2)
    seen["window-resumed"] = accumulating(folder, folder / "window.ckpt", max_epochs=2)

    bad = Bad(REBAR(), optimizer=SGD)
    try:
        made = trainer(strategy="ddp", devices=2, max_epochs=1, use_distributed_sampler=False)
        made.fit(bad, Rows(rows(), rank, 2))
    except FloatingPointError as error:
        seen["error"], seen["weights"] = str(error), dict(bad.state_dict())
    torch.save(seen, folder / f"rank{rank}.pt")


def main_on_two_nodes(folder):
    """Train, and resume, as one of two nodes with one process each."""
    warnings.simplefilter("ignore")
    folder = Path(folder)
    nodes = {"devices": 1, "num_nodes": 2}
    digits(folder, max_steps=4, **nodes)
    seen = digits(folder, folder / "digits-4.ckpt", max_steps=10, **nodes)
    torch.save(seen, folder / f"rank{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main_on_two_nodes(sys.argv[2]) if sys.argv[1] == "two-nodes" else main(sys.argv[1])
