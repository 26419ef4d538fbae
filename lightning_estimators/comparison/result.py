"""What a comparison returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_estimators.comparison.reference import Reference
from lightning_estimators.comparison.rows import Row, without_nan
from lightning_estimators.comparison.table import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Comparison"]


@dataclass(frozen=True)
class Comparison:
    """What was measured of estimators at fixed weights; `print` it for the table.

    Attributes:
        rows: One for each candidate, in the order given, behind what the module has.
        reference: What the means were compared with.
        recommendation: In words, with its conditions.
        data_variance: Total variance of the exact gradient between batches, where a loader was given, else None.
        seconds: How long it took.
        learning_rate: Of the Adam that trained what candidates learn.
        interrupted: Whether it was cut short from the keyboard.
        notes: What else is to be known of the figures.
    """

    rows: list[Row]
    reference: Reference
    recommendation: str
    data_variance: float | None
    seconds: float
    learning_rate: float
    interrupted: bool
    notes: list[str]

    def __str__(self) -> str:
        return table(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: None for what is not a number, "inf" for what is infinite."""
        plain: dict[str, Any] = without_nan(
            {
                "rows": [row.to_dict() for row in self.rows],
                "reference": vars(self.reference) | {"words": str(self.reference)},
                **{name: value for name, value in vars(self).items() if name not in ("rows", "reference")},
            }
        )
        return plain

    def to_frame(self) -> Any:
        """Return a pandas `DataFrame`, one line per candidate, figures of groups as columns `<group>/<figure>`.

        Raises:
            ImportError: pandas, which this package does not need otherwise, is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "to_frame needs pandas, which is not installed: `pip install pandas`, or take to_dict()['rows']."
            ) from error
        lines = []
        for row in self.rows:
            line = {name: value for name, value in vars(row).items() if name != "groups"}
            for group, of_group in row.groups.items():
                line |= {f"{group}/{name}": value for name, value in vars(of_group).items()}
            lines.append(line)
        return pandas.DataFrame(lines)

    def plot(self) -> Figure:
        """Return a figure of matplotlib: variance against time, with lines of equal variance × time."""
        from lightning_estimators.comparison.plot import plot  # matplotlib takes long to import

        return plot(self)
