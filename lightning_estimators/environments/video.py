"""A video of an episode."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_estimators.environments.actions import Actions
from lightning_estimators.environments.episodes import play_episodes
from lightning_estimators.environments.making import Maker
from lightning_estimators.environments.scaling import RunningScale
from lightning_estimators.rollout import Episodes, Policy

if TYPE_CHECKING:
    import gymnasium

__all__ = ["record_episode"]


def record_episode(
    policy: Policy,
    maker: Maker,
    actions: Actions,
    seed: int,
    folder: str | Path,
    name: str,
    *,
    scale: RunningScale | None = None,
    greedy: bool = False,
    put: Callable[[Tensor], Tensor] | None = None,
) -> Episodes:
    """Play one episode and write it to `folder` as `name.mp4`, with gymnasium's `RecordVideo`.

    Args:
        policy: What acts.
        maker: Makes the environment.
        actions: Of its action space.
        seed: With which the episode begins.
        folder: Where to write; it is created.
        name: Of the file.
        scale: As in `play_episodes`.
        greedy: As in `play_episodes`.
        put: As in `play_episodes`.

    Raises:
        ValueError: The environment makes no pictures, or not on this machine; or what writes videos is not installed.
    """
    from gymnasium.error import DependencyNotInstalled
    from gymnasium.vector import AutoresetMode, SyncVectorEnv
    from gymnasium.wrappers import RecordVideo

    with tempfile.TemporaryDirectory() as temporary:

        def watched() -> gymnasium.Env[Any, Any]:
            one = maker(render_mode="rgb_array")
            return RecordVideo(one, f"{temporary}/new", episode_trigger=lambda _: True, disable_logger=True)

        try:
            environments = SyncVectorEnv([watched], autoreset_mode=AutoresetMode.DISABLED)
        except DependencyNotInstalled as error:
            raise ValueError(f"{error} (pip install 'lightning-estimators[rl]')") from error
        try:
            episodes = play_episodes(policy, environments, actions, [seed], scale=scale, greedy=greedy, put=put)
        except Exception as error:  # each renderer has errors of its own
            raise ValueError(
                f"no video could be made of the episode ({type(error).__name__}: {error}). On a machine without a "
                "display MuJoCo needs the environment variable MUJOCO_GL=egl or MUJOCO_GL=osmesa. Episodes without a "
                "video are played by `test`."
            ) from error
        finally:
            environments.close()  # writes the file
        Path(folder).mkdir(parents=True, exist_ok=True)
        (written,) = Path(temporary, "new").glob("*.mp4")
        shutil.move(written, Path(folder, f"{name}.mp4"))
    return episodes
