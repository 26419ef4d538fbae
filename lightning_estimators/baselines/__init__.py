"""What REINFORCE can subtract from the cost; one file each."""

from lightning_estimators.baselines.base import Baseline
from lightning_estimators.baselines.learned import LearnedBaseline
from lightning_estimators.baselines.leave_one_out import LeaveOneOut
from lightning_estimators.baselines.moving_average import MovingAverage
from lightning_estimators.baselines.no_baseline import NoBaseline
from lightning_estimators.baselines.running import RunningBaseline

__all__ = ["Baseline", "LearnedBaseline", "LeaveOneOut", "MovingAverage", "NoBaseline", "RunningBaseline"]
