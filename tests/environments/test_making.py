"""An environment is a registered id, a class, a function, or the path of a class; others are refused in words."""

import sys

import pytest

pytest.importorskip("gymnasium", reason="needs lightning-estimators[rl]")

import gymnasium
import numpy as np
from gymnasium import spaces

from lightning_estimators.environments import Maker
from lightning_estimators.environments.making import require_gymnasium
from tests.environments.acting import Counting


@pytest.mark.parametrize(
    "env",
    ["tests.environments.acting.Counting", "tests.environments.acting:Counting-v0", Counting, lambda **_: Counting()],
    ids=["path", "id with module", "class", "function"],
)
def test_every_name_of_an_environment(env):
    gymnasium.register("Counting-v0", Counting)
    try:
        made = Maker(env, {"length": 7})()
    finally:
        gymnasium.registry.pop("Counting-v0")
    assert isinstance(made.unwrapped, Counting)
    assert made.unwrapped.length == (3 if callable(env) and env is not Counting else 7)


@pytest.mark.parametrize("env", ["CartPole-v1", Counting], ids=str)
def test_episodes_can_be_cut_short(env):
    made = Maker(env, {}, max_episode_steps=2)()
    made.reset(seed=0)
    assert [made.step(0)[3] for _ in range(2)] == [False, True]


def test_observations_are_flattened():
    class Structured(Counting):
        def __init__(self):
            super().__init__()
            self.observation_space = spaces.Dict(where=spaces.Discrete(3), speed=spaces.Box(-1, 1, (2, 2)))

        def shown(self):
            return {"where": 2, "speed": np.ones((2, 2), dtype=np.float32)}

    observation, _ = Maker(Structured, {})().reset()
    assert observation.tolist() == [0, 0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("CartPol-v1", "CartPole"),
        ("NoSuchThing-v0", "cannot be made"),
        ("tests.environments.acting.Nothing", "neither a registered environment nor the import path"),
        ("no_such_project.Env", "no_such_project"),
        ("os.system", "must be a subclass of gymnasium.Env"),
        ("CartPole-v1 ", "cannot be made"),
    ],
)
def test_what_is_no_environment_is_refused(env, message):
    with pytest.raises(ValueError, match=message):
        Maker(env, {})()


def test_a_function_that_makes_something_else_is_refused():
    with pytest.raises(TypeError, match=r"must make a gymnasium\.Env, got dict"):
        Maker(dict, {})()


def test_options_that_it_does_not_have_are_refused():
    with pytest.raises(ValueError, match="gravitation"):
        Maker("CartPole-v1", {"gravitation": 3})()


def test_observations_without_a_fixed_size_are_refused():
    class Growing(Counting):
        def __init__(self):
            super().__init__()
            self.observation_space = spaces.Sequence(spaces.Discrete(2))

    with pytest.raises(ValueError, match="no fixed size"):
        Maker(Growing, {})()


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-estimators\[rl\]'"):
        require_gymnasium()
