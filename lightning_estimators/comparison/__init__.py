"""Which gradient estimator suits a model: `compare`, at fixed weights."""

from lightning_estimators.comparison.comparing import compare
from lightning_estimators.comparison.reference import Reference
from lightning_estimators.comparison.result import Comparison
from lightning_estimators.comparison.rows import ALARM, Figures, Row

__all__ = ["ALARM", "Comparison", "Figures", "Reference", "Row", "compare"]
