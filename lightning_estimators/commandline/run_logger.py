"""The logger that the command line makes where none is asked for."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams


class RunLogger(TensorBoardLogger):
    """Lightning's default logger, but a folder belongs to one run, and HPARAMS shows no metric that nobody logs."""

    @cached_property
    def version(self) -> int | str:
        """The run's number; its folder is made at once, so that another that starts at the same time takes the next."""
        version = super().version
        first = getattr(rank_zero_only, "rank", 0) == 0 and os.environ.get("NODE_RANK", "0") == "0"
        while isinstance(version, int) and first:
            try:
                os.makedirs(os.path.join(self.root_dir, f"version_{version}"))
                break
            except FileExistsError:
                version += 1
        return version

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Record the hyper-parameters, for the tab HPARAMS too, without what Lightning notes for itself."""
        params = {name: value for name, value in dict(params).items() if not name.startswith("_")}
        super().log_hyperparams(params, *args, **kwargs)
        written: Any = hparams
        writer = getattr(self.experiment, "file_writer", None)
        if writer is not None:
            for summary in written({name: str(value) for name, value in params.items()}, {"val/loss": 0.0}):
                writer.add_summary(summary)
