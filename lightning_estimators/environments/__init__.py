"""Acting in gymnasium's environments: batches for training, whole episodes for judging. Never imports Lightning."""

from lightning_estimators.environments.actions import Actions
from lightning_estimators.environments.collector import Collector
from lightning_estimators.environments.episodes import play_episodes
from lightning_estimators.environments.making import Maker
from lightning_estimators.environments.scaling import RunningScale

__all__ = ["Actions", "Collector", "Maker", "RunningScale", "play_episodes"]
