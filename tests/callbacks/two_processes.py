"""Run by a test: trains with and without callbacks in two processes, and keeps what each of them has."""

import sys
from pathlib import Path
from typing import ClassVar

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from closed_form import Coins, loader
from lightning.pytorch.loggers import TensorBoardLogger
from noisy import Noisy

from lightning_estimators.callbacks import EstimatorComparison, GradientVariance, Reconstructions
from lightning_estimators.estimators import StochasticBackprop


class Talking(Noisy):
    """Waits for the other process in every evaluation of its loss."""

    sizes: ClassVar[set] = set()  # how many processes there were in one; of the class, so that it is not put back

    def loss(self, batch):
        size = torch.ones(())
        dist.all_reduce(size)
        self.sizes.add(int(size))
        return super().loss(batch) * size


def main(folder):
    def fit(module, data, *callbacks, logger=False, **options):
        trainer = pl.Trainer(
            accelerator="cpu",
            strategy="ddp",
            devices=2,
            logger=logger,
            callbacks=list(callbacks),
            log_every_n_steps=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
            **options,
        )
        trainer.fit(module, data, None if options.get("limit_val_batches") == 0 else data)
        return trainer

    pl.seed_everything(1, verbose=False)
    measured = fit(Coins(2000), loader(2000), GradientVariance(num_samples=50), max_epochs=1, limit_val_batches=0)
    figures = {key: value for key, value in measured.callback_metrics.items() if key.startswith("gradient/")}

    trained = []
    comparison = EstimatorComparison(every_n_epochs=2, budget=2.0, estimators=[StochasticBackprop()])
    for kind, callbacks in (
        (Noisy, []),
        (Noisy, [GradientVariance(num_samples=2), Reconstructions(5)]),
        (Talking, []),
        (Talking, [comparison]),
    ):
        pl.seed_everything(2, verbose=False)
        images = torch.rand(16, 1, 4, 4)[measured.global_rank :: 2]
        module = kind()
        data = torch.utils.data.DataLoader(images, batch_size=4)
        logger = TensorBoardLogger(folder) if callbacks else False
        made = fit(module, data, *callbacks, logger=logger, max_epochs=2, num_sanity_val_steps=1)
        weights = {name: p.detach() for name, p in module.named_parameters()}
        trained.append([weights, [optimizer.state_dict() for optimizer in made.optimizers]])
    rows = None if comparison.latest is None else [row.name for row in comparison.latest.rows]
    torch.save(
        {"figures": figures, "trained": trained, "rows": rows, "sizes": Talking.sizes},
        folder / f"rank{measured.global_rank}.pt",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
