"""Each private access to another library still means what the package takes it for."""

import lightning.pytorch as pl
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers.logger import Logger

from lightning_estimators import private_api


class Recorder(Logger):
    name, version = "recorder", 0

    def __init__(self):
        super().__init__()
        self.steps = []

    def log_metrics(self, metrics, step=None):
        self.steps.append(step)

    def log_hyperparams(self, *args, **kwargs):
        pass


def test_the_step_of_loggers_can_be_set():
    class Shifted(BoringModel):
        def training_step(self, batch, batch_idx):
            private_api.set_logged_step(self.trainer, 40 + batch_idx)
            self.log("loss", 1.0)
            return super().training_step(batch, batch_idx)

    recorder = Recorder()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(max_steps=3, log_every_n_steps=1, logger=recorder, accelerator="cpu", **quiet)
    trainer.fit(Shifted(), BoringModel().train_dataloader())
    assert [step for step in recorder.steps if step and step >= 40] == [40, 41, 42], (
        "Lightning no longer places what is logged by FitLoop.epoch_loop._batches_that_stepped: find what it uses "
        "instead, and change private_api.set_logged_step"
    )
