"""What a run of the command line writes down of itself."""

from __future__ import annotations

import time
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from lightning_estimators.modules.recorded import CHECKPOINT_KEY

__all__ = ["RunConfig"]


class RunConfig(SaveConfigCallback):
    """Writes the configuration of the run where its logs go, and what a checkpoint would not know into checkpoints."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write config.yaml, if there is a logger that keeps files."""
        self.started = time.time_ns()
        if trainer.loggers and trainer.log_dir is not None:
            super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Begin after the run that is resumed, whatever the clock says."""
        self.started = max(self.started, checkpoint.get(CHECKPOINT_KEY, {}).get("started", 0) + 1)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the options of the data, the seed, and when the run began; those of the model are kept by itself."""
        if not hasattr(self, "kept"):  # writing options down takes longer than an epoch of a small job
            written = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
            self.kept = {name: written[name] for name in ("data", "seed_everything") if written.get(name) is not None}
        checkpoint[CHECKPOINT_KEY] = self.kept | {"started": self.started}
