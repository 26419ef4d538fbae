"""Where a comparison is kept: in the folder of a run's logs, and in TensorBoard."""

from __future__ import annotations

import json
import math
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_estimators.comparison.result import Comparison

__all__ = ["write_report"]


def write_report(result: Comparison, trainer: pl.Trainer, step: int, name: str = "comparison") -> Path | None:
    """Write `<name>.txt`, `<name>.json` and `<name>.png` into the log folder; the same and curves into TensorBoard.

    Curves, for all loggers: `comparison/<estimator>/log_variance` and `.../log_work_variance`, natural logarithms.

    Args:
        result: The comparison.
        trainer: Whose loggers are told.
        step: Of the optimizer, at whose weights was compared.
        name: Of the files.

    Returns:
        The folder, or None if the run keeps none.
    """
    curves = {}
    for row in result.rows:
        for what, value in (("variance", row.variance), ("work_variance", row.work_variance)):
            if value > 0:
                curves[f"comparison/{row.name}/log_{what}"] = math.log(value)
    figure = result.plot()
    for logger in trainer.loggers:
        if curves:
            logger.log_metrics(curves, step=step)
        if isinstance(logger, TensorBoardLogger):
            text = "\n".join(f"    {line}" for line in str(result).splitlines())  # Markdown for what is set as it is
            logger.experiment.add_text("comparison/table", text, step)
            logger.experiment.add_figure("comparison/variance and time", figure, step)
            logger.experiment.flush()
    if not trainer.loggers or trainer.log_dir is None:
        return None
    folder = Path(trainer.log_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_text(f"{result}\n", encoding="utf-8")
    (folder / f"{name}.json").write_text(json.dumps(result.to_dict(), indent=1), encoding="utf-8")
    figure.savefig(folder / f"{name}.png", dpi=120)
    return folder
