"""The Trainer of the command line, which can also compare estimators."""

from __future__ import annotations

from typing import Any, Literal, cast

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities import rank_zero_info

from lightning_estimators.checkpoints import read_checkpoint
from lightning_estimators.comparison import Comparison, compare
from lightning_estimators.comparison.report import write_report
from lightning_estimators.datamodules import Gymnasium
from lightning_estimators.estimators import GradientEstimator
from lightning_estimators.rollout import Policy

__all__ = ["ComparingTrainer", "subcommands"]


def subcommands() -> dict[str, set[str]]:
    """Return Lightning's subcommands and `compare`, each with the arguments of its method that are no options."""
    return LightningCLI.subcommands() | {"compare": {"model", "datamodule"}}


class ComparingTrainer(Trainer):
    """Lightning's Trainer, and `compare` beside `fit`."""

    def compare(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,  # noqa: FBT001  as the other methods have it
        estimators: list[GradientEstimator] | None = None,
        budget: float = 60.0,
        exchange: Literal["all", "each"] = "all",
        learning_steps: int = 300,
    ) -> Comparison:
        """Compare gradient estimators on the first training batch, at the weights of a checkpoint.

        Args:
            model: Made as for training.
            datamodule: Whose training batches are compared on.
            ckpt_path: A checkpoint, or "last" or "best" of the runs in this folder; none for the initial weights.
            weights_only: As in `torch.load`.
            estimators: The candidates; all that fit by default.
            budget: Seconds.
            exchange: Where there are several latents: all of them at once, or each by itself.
            learning_steps: Steps that candidates have to learn, at most.

        Raises:
            ValueError: There is more than one process.
        """
        if self.world_size > 1:
            raise ValueError(f"compare runs in one process, got {self.world_size}: add --trainer.devices 1.")
        # What `fit` does before its first step.
        self.datamodule = datamodule
        datamodule.trainer, model.trainer = self, self
        self.strategy.connect(model)  # so that `lightning_module` is known
        datamodule.prepare_data()
        datamodule.setup("fit")
        model.setup("fit")
        model.configure_model()
        self.precision_plugin.convert_module(model)  # in place
        step = 0
        if ckpt_path:
            checkpoint = read_checkpoint(ckpt_path, weights_only=weights_only is not False)
            model.on_load_checkpoint(checkpoint)
            model.load_state_dict(checkpoint["state_dict"])
            if state := checkpoint.get(type(datamodule).__qualname__):  # where Lightning keeps it
                datamodule.load_state_dict(state)
            step = int(checkpoint.get("global_step", 0))
        else:
            rank_zero_info("No --ckpt_path: estimators are compared at the initial weights.")
        model.to(self.strategy.root_device)
        # A training batch of a policy belongs to the update that follows it.
        batches: Any = (
            datamodule.rollouts(cast(Policy, model))
            if isinstance(datamodule, Gymnasium)
            else datamodule.train_dataloader()
        )
        result = compare(
            model,
            batches,
            estimators,
            budget,
            exchange=exchange,
            learning_steps=learning_steps,
        )
        print(result)
        if (folder := write_report(result, self, step)) is not None:
            rank_zero_info(f"Table, JSON and figure are in {folder}")
        return result
