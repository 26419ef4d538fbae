"""Kinds of actions: what a policy is told of them, and what reaches the environment."""

import pytest
import torch

pytest.importorskip("gymnasium", reason="needs lightning-estimators[rl]")

import numpy as np
from gymnasium import spaces

from lightning_estimators.environments import Actions

CASES = {
    "discrete": (spaces.Discrete(3), [3], torch.tensor([0, 2]), [0, 2]),
    "discrete from 5": (spaces.Discrete(3, start=5), [3], torch.tensor([0, 2]), [5, 7]),
    "multi discrete": (
        spaces.MultiDiscrete([2, 4], start=[0, 1]),
        [2, 4],
        torch.tensor([[1, 3], [0, 0]]),
        [[1, 4], [0, 1]],
    ),
    "multi discrete of two axes": (
        spaces.MultiDiscrete(np.array([[2, 3], [4, 5]])),
        [2, 3, 4, 5],
        torch.tensor([[1, 2, 3, 4]]),
        [[[1, 2], [3, 4]]],
    ),
    "multi binary": (spaces.MultiBinary([2, 2]), [4], torch.tensor([[1, 0, 0, 1]]), [[[1, 0], [0, 1]]]),
    "box": (
        spaces.Box(np.float32([-1, -2]), np.float32([1, np.inf])),
        [2],
        torch.tensor([[-3.0, -3.0], [0.5, 9.0]]),
        [[-1.0, -2.0], [0.5, 9.0]],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_actions_arrive_inside_the_space(case):
    space, sizes, given, expected = CASES[case]
    actions = Actions(space)
    assert actions.sizes == sizes
    sent = actions.for_environments(given)
    assert sent.tolist() == expected
    assert all(space.contains(one if space.shape else np.int64(one)) for one in sent)


def test_other_spaces_are_refused():
    for space in (spaces.Box(0, 5, (2,), np.int32), spaces.Dict(a=spaces.Discrete(2)), spaces.Text(3)):
        with pytest.raises(TypeError, match="action space is"):
            Actions(space)


def test_masks_of_several_variables_lie_one_after_the_other():
    actions = Actions(spaces.MultiDiscrete([2, 3]))
    infos = {"action_mask": np.empty(2, dtype=object), "_action_mask": np.array([True, False])}
    infos["action_mask"][0] = (np.array([0, 1]), np.array([1, 1, 0]))
    assert actions.masks(infos, 2).tolist() == [[False, True, True, True, False], [True] * 5]
    assert actions.masks({}, 2) is None


@pytest.mark.parametrize(
    ("space", "mask", "message"),
    [
        (spaces.Discrete(3), [1, 1], "has 2 entries; expected 3"),
        (spaces.Discrete(3), [0, 0, 0], "allows no action"),
        (spaces.MultiDiscrete([2, 2]), [1, 1, 0, 0], "allows no action"),
        (spaces.MultiBinary(2), [1, 1], "masks its actions"),
    ],
)
def test_masks_that_make_no_sense_are_refused(space, mask, message):
    infos = {"action_mask": np.array([mask]), "_action_mask": np.array([True])}
    with pytest.raises(ValueError, match=message):
        Actions(space).masks(infos, 1)
