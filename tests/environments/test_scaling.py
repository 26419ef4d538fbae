"""Running statistics are those of all observations at once, however they came."""

import numpy as np
import pytest
import torch

from lightning_estimators.environments import RunningScale


def observations(count=1000, offset=0.0):
    return np.random.default_rng(0).normal(size=(count, 3)) * [1, 10, 0.1] + [0, 5, -2] + offset


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_batches_add_up(offset):
    seen = observations(offset=offset)
    scale = RunningScale(3, limit=100.0)
    for part in np.split(seen, [10, 300, 301]):
        scale.take_in(part.reshape(-1, 1, 3))
    state = scale.state_dict()
    np.testing.assert_allclose(state["mean"], seen.mean(0), rtol=1e-12)
    np.testing.assert_allclose(state["squares"] / 1000, seen.var(0), rtol=1e-7)
    expected = (seen[:7] - seen.mean(0)) / seen.std(0)
    np.testing.assert_allclose(scale(seen[:7]), expected, atol=1e-4 if offset == 0 else 0.05)


def test_processes_share_statistics():
    seen = observations()
    scales = [RunningScale(3), RunningScale(3)]
    sums = []
    for half in np.split(seen, 2):  # what each process would hand over
        RunningScale(3).take_in(half, lambda given: (sums.append(given), given)[1])
    for scale, half in zip(scales, np.split(seen, 2), strict=True):
        scale.take_in(half, lambda _: sums[0] + sums[1])
        np.testing.assert_allclose(scale.state_dict()["mean"], seen.mean(0))
        np.testing.assert_allclose(scale.state_dict()["squares"] / 1000, seen.var(0))


def test_entries_that_never_change_and_entries_far_away_stay_finite():
    scale = RunningScale(2)
    scale.take_in(np.array([[7.0, 0.0]] * 50 + [[7.0, 1.0]] * 50))
    assert scale(np.array([[7.0, 1e9]])).tolist() == [[0.0, 10.0]]
    assert scale(np.array([[8.0, -1e9]])).tolist() == [[1.0, -10.0]]


def test_state_survives_a_checkpoint(tmp_path):
    scale, other = RunningScale(3), RunningScale(3)
    scale.take_in(observations())
    torch.save(scale.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert np.array_equal(scale(observations(5)), other(observations(5)))
    with pytest.raises(ValueError, match="3 entries; this environment has 2"):
        RunningScale(2).load_state_dict(scale.state_dict())
