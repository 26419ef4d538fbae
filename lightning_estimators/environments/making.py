"""Making an environment from what a user names it by."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.vector import VectorEnv

__all__ = ["Maker", "require_gymnasium"]


def require_gymnasium() -> None:
    """Raise, saying what to install, if gymnasium is missing.

    Raises:
        ModuleNotFoundError: It is.
    """
    try:
        import gymnasium  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "environments for reinforcement learning need gymnasium, which is not installed: "
            "pip install 'lightning-estimators[rl]'"
        ) from error


@dataclass(frozen=True)
class Maker:
    """Makes environments, one or many in step with each other. It can be sent to other processes.

    Observations come flattened to a vector of real numbers by gymnasium's own `FlattenObservation`.

    Attributes:
        env: A registered id ("CartPole-v1", "my_package:MyEnv-v0"); or a class or function that makes an environment,
            or the import path of such a class ("my_project.MyEnv").
        options: Keyword arguments of the environment.
        max_episode_steps: Steps after which an episode is truncated; None for what the environment was registered with.

    Raises:
        ValueError: There is no such environment, or its observations cannot be flattened.
        TypeError: What was made is no environment.
    """

    env: str | Callable[..., Any]
    options: Mapping[str, Any]
    max_episode_steps: int | None = None

    def __call__(self, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
        """Make one environment.

        Args:
            render_mode: "rgb_array" for one whose `render()` returns pictures.
        """
        import gymnasium
        from gymnasium.wrappers import FlattenObservation, TimeLimit

        options = dict(self.options)
        if render_mode is not None:
            options["render_mode"] = render_mode
        made: Any
        if isinstance(self.env, str) and (self.env in gymnasium.registry or ":" in self.env or "." not in self.env):
            try:
                made = gymnasium.make(self.env, max_episode_steps=self.max_episode_steps, **options)
            except (gymnasium.error.Error, ImportError, TypeError) as error:
                raise ValueError(f"the environment {self.env!r} cannot be made: {error}") from error
        else:
            made = _called(_class_at(self.env) if isinstance(self.env, str) else self.env, options)
            if not isinstance(made, gymnasium.Env):
                raise TypeError(f"env must make a gymnasium.Env, got {type(made).__name__} from {self.env!r}.")
            if self.max_episode_steps is not None:
                made = TimeLimit(made, self.max_episode_steps)
        space = made.observation_space
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            if not space.is_np_flattenable:
                made.close()
                raise ValueError(
                    f"the environment's observation space is {space}, which has no fixed size; expected one that "
                    "gymnasium.spaces.flatten_space takes, such as a Box, Discrete, or a Dict of these."
                )
            made = FlattenObservation(made)
        return made  # type: ignore[no-any-return]

    def vector(self, count: int, *, in_processes: bool = False) -> VectorEnv[Any, Any, Any]:
        """Make several environments that begin a new episode in the same step in which one ended.

        Args:
            count: How many.
            in_processes: Whether each runs in a process of its own (worthwhile where a step takes over a millisecond).
        """
        from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

        kind: Any = AsyncVectorEnv if in_processes else SyncVectorEnv
        return kind([self] * count, autoreset_mode=AutoresetMode.SAME_STEP)  # type: ignore[no-any-return]


def _called(make: Callable[..., Any], options: dict[str, Any]) -> Any:
    if "render_mode" in options:
        parameters = inspect.signature(make).parameters
        if "render_mode" not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            raise ValueError(
                f"{getattr(make, '__name__', make)} takes no render_mode; expected an environment whose constructor "
                "takes render_mode='rgb_array' to make pictures of it."
            )
    return make(**options)


def _class_at(path: str) -> type:
    """The environment's class at an import path, and nothing else that could be called."""
    import gymnasium

    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"env={path!r} is neither a registered environment nor the import path of a class: {error}. Expected an id "
            "of gymnasium.pprint_registry(), or my_project.MyEnv."
        ) from error
    if not (isinstance(found, type) and issubclass(found, gymnasium.Env)):
        raise ValueError(f"env={path!r} must be a subclass of gymnasium.Env, got {found!r}.")
    return found
