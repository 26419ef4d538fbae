"""What each of two processes does for test_policy_ddp.py, started once; writes what it saw to a file of its own."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from lightning_estimators.datamodules import Gymnasium
from lightning_estimators.estimators import REINFORCE
from lightning_estimators.modules import PolicyGradient
from modules.tiny import trainer


class Keep(pl.Callback):
    def __init__(self):
        super().__init__()
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)


def main(folder):
    warnings.simplefilter("ignore")
    folder, rank = Path(folder), int(os.environ["LOCAL_RANK"])
    pl.seed_everything(0, verbose=False)
    data = Gymnasium(num_envs=2, num_steps=8, steps_per_epoch=3, eval_episodes=3)
    module = PolicyGradient(REINFORCE(), data.observation_size, data.action_kind, data.action_sizes, hidden=[8])
    keep = Keep()
    made = trainer(strategy="ddp", devices=2, max_epochs=1, callbacks=[keep])
    made.fit(module, datamodule=data)
    seen = {
        "observations": [batch.observations for batch in keep.batches],
        "actions": [batch.actions for batch in keep.batches],
        "scale": data.scale.state_dict(),
        "weights": module.state_dict(),
        "logged": {name: float(value) for name, value in made.callback_metrics.items()},
    }
    torch.save(seen, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1])
