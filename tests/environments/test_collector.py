"""Training batches hold what happened, step by step, across the ends of episodes."""

import functools

import pytest
import torch

pytest.importorskip("gymnasium", reason="needs lightning-estimators[rl]")

import numpy as np
from gymnasium import spaces

from lightning_estimators.environments import Actions, Collector, Maker, RunningScale, play_episodes
from tests.environments.acting import Counting, SmallPolicy


def collector(num_envs=2, num_steps=5, scale=None, in_processes=False, **options):
    maker = Maker(Counting, options)
    made = maker.vector(num_envs, in_processes=in_processes)
    return Collector(made, Actions(maker().action_space), num_steps, range(10, 10 + num_envs), scale)


@pytest.mark.parametrize("truncates", [False, True])
def test_steps_follow_one_another(truncates):
    collecting = collector(truncates=truncates)
    batch = collecting.collect(SmallPolicy(2), 0)
    observations = torch.tensor([[0.0, 0], [0, 1], [0, 2], [1, 0], [1, 1]])
    after = torch.tensor([[0.0, 1], [0, 2], [0, 3], [1, 1], [1, 2]])
    ends = torch.tensor([False, False, True, False, False])
    for env in range(2):
        assert torch.equal(batch.observations[:, env], observations)
        assert torch.equal(batch.next_observations[:, env], after)
        assert batch.rewards[:, env].tolist() == [1, 2, 3, 1, 2]
        assert batch.elapsed_steps[:, env].tolist() == [0, 1, 2, 0, 1]
        assert batch.episode_returns[:, env].tolist() == [1, 3, 6, 1, 3]
        assert torch.equal(batch.truncated[:, env], ends & truncates)
        assert torch.equal(batch.terminated[:, env], ends & (not truncates))
    assert batch.action_mask is None
    second = collecting.collect(SmallPolicy(2), 1)
    assert second.observations[0, 0].tolist() == [1, 2]
    assert second.elapsed_steps[:, 0].tolist() == [2, 0, 1, 2, 0]
    assert second.episode_returns[:, 0].tolist() == [6, 1, 3, 6, 1]


def test_actions_reach_the_environment_they_were_chosen_for():
    collecting = collector(num_envs=3)
    batch = collecting.collect(SmallPolicy(2), 0)
    assert len(set(map(tuple, batch.actions.T.tolist()))) > 1
    for env, taken in enumerate(collecting.environments.envs):
        assert [int(action) for action in taken.unwrapped.taken] == batch.actions[:, env].tolist()
        assert taken.unwrapped.reset_seeds == [10 + env, None]


def test_log_prob_is_that_of_the_action():
    policy = SmallPolicy(2)
    batch = collector().collect(policy, 0)
    expected = policy.log_probs(batch.observations).gather(-1, batch.actions.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(batch.log_prob, expected)
    assert not batch.log_prob.requires_grad


def test_processes_collect_the_same():
    apart = collector(in_processes=True)
    try:
        batches = [apart.collect(SmallPolicy(2), number) for number in range(2)]
    finally:
        apart.environments.close()
    together = collector()
    for number, batch in enumerate(batches):
        expected = together.collect(SmallPolicy(2), number)
        for name in ("observations", "next_observations", "rewards", "elapsed_steps", "terminated"):
            assert torch.equal(getattr(batch, name), getattr(expected, name)), name


def test_scale_is_one_for_a_whole_batch_and_learns_from_it():
    scale = RunningScale(2)
    collecting = collector(scale=scale)
    first = collecting.collect(SmallPolicy(2), 0)
    assert first.observations[:, 0, 1].tolist() == [0, 1, 2, 0, 1]  # nothing was known yet
    second = collecting.collect(SmallPolicy(2), 1)
    seen = first.observations.reshape(-1, 2)
    mean, deviation = seen.mean(0), seen.std(0, correction=0)
    raw = torch.tensor([[1.0, 2], [2, 0], [2, 1], [2, 2], [3, 0]])
    after = torch.tensor([[1.0, 3], [2, 1], [2, 2], [2, 3], [3, 1]])
    assert torch.allclose(second.observations[:, 0], (raw - mean) / deviation)
    assert torch.allclose(second.next_observations[:, 0], (after - mean) / deviation)


def test_masks_are_those_of_the_step():
    masks = np.array([False, True])
    batch = collector(masks=masks).collect(SmallPolicy(2), 0)
    assert batch.action_mask.shape == (5, 2, 2)
    assert batch.action_mask[..., 1].all()
    assert not batch.action_mask[..., 0].any()
    assert bool((batch.actions == 1).all())


@pytest.mark.parametrize("width", [1, 3, 5])
def test_every_episode_is_played_to_its_end(width):
    maker = Maker(Counting, {"length": 4})
    episodes = play_episodes(SmallPolicy(2), maker.vector(width), Actions(maker().action_space), range(3))
    assert episodes.returns.tolist() == [10.0] * 3
    assert episodes.lengths.tolist() == [4] * 3


def test_short_episodes_count_no_more_than_long_ones():
    """Of two environments side by side one ends much earlier; it must not supply more than its share."""
    lengths = iter([1, 20] + [7] * 10)

    def unequal():
        return Counting(length=next(lengths))

    maker = Maker(unequal, {})
    environments = maker.vector(2)
    episodes = play_episodes(SmallPolicy(2), environments, Actions(spaces.Discrete(2)), [0, 1, 2, 3])
    assert episodes.lengths.tolist() == [1, 20, 1, 20]


def test_evaluation_is_the_same_each_time_and_has_noise_of_its_own():
    policy = SmallPolicy(4)
    maker = Maker("CartPole-v1", {})
    play = functools.partial(play_episodes, policy, maker.vector(2), Actions(spaces.Discrete(2)), [3, 4, 5])
    assert torch.equal(play().lengths, play().lengths)
    assert policy.acted == [(0, True), (0, True)]
    assert not torch.equal(play(greedy=True).lengths, play().lengths)
