"""Environments as strangers write them: nested observations, pictures, tables of actions, no end but truncation."""

import gymnasium
import numpy as np
from gymnasium import spaces

VECTOR = spaces.Box(-1, 1, (2,))


class Strange(gymnasium.Env):
    """Shows random observations, and insists on actions that its space contains; episodes are cut off after 3 steps."""

    def __init__(self, observation_space=VECTOR, action_space=None, reward=1.0, shown=None):
        self.observation_space, self.action_space = observation_space, action_space or spaces.Discrete(3)
        self.reward, self.shown = reward, shown

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.number = 0
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.number += 1
        return self.observe(), self.reward, False, self.number == 3, {}

    def observe(self):
        return self.observation_space.sample() if self.shown is None else np.full(2, self.shown, np.float32)


SPACES = {
    "dictionary": (spaces.Dict({"a": VECTOR, "b": spaces.Discrete(3)}), spaces.Discrete(3, start=-1), 5),
    "tuple": (spaces.Tuple((VECTOR, spaces.Discrete(3))), spaces.MultiDiscrete([2, 3]), 5),
    "pictures": (spaces.Box(0, 255, (4, 4, 3), np.uint8), spaces.Discrete(2), 48),
    "tables": (spaces.MultiDiscrete([3, 4]), spaces.MultiDiscrete([[2, 3], [2, 2]]), 7),
    "switches": (spaces.Discrete(5, start=2), spaces.MultiBinary([2, 2]), 5),
    "double precision": (spaces.Box(-1, 1, (2,), np.float64), spaces.Box(-2, 2, (2, 2), np.float64), 2),
}
"""Observations, actions, and how many numbers a policy sees."""

REFUSED = {
    "mixed actions": (
        {"action_space": spaces.Tuple((spaces.Discrete(2), VECTOR))},
        TypeError,
        "Tuple.*TransformAction",
    ),
    "named actions": ({"action_space": spaces.Dict({"a": spaces.Discrete(2)})}, TypeError, "Dict.*expected Discrete"),
    "whole numbers": ({"action_space": spaces.Box(0, 5, (1,), np.int64)}, TypeError, "expected .* a Box of real"),
    "sequences": ({"observation_space": spaces.Sequence(spaces.Discrete(3))}, ValueError, "no fixed size"),
    "graphs": ({"observation_space": spaces.Graph(VECTOR, None)}, ValueError, "no fixed size"),
}
"""Arguments, the error, and what it says."""
