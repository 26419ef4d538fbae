"""Uniform noise, and drawing it again."""

import pytest
import torch
from scipy import stats

from lightning_estimators.noise import CommonNoise, is_replaying, uniform

CPU = torch.device("cpu")


def draw(*batch, event=(), dtype=torch.float64):
    return uniform(batch, event, dtype=dtype, device=CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_is_uniform(dtype):
    u = draw(20_000, event=(2,), dtype=dtype)
    assert u.dtype == dtype
    assert u.shape == (20_000, 2)
    for column in u.T:
        assert stats.kstest(column.numpy(), "uniform").pvalue > 1e-4  # fixed seed
    assert abs(torch.corrcoef(u.T)[0, 1]) < 0.04


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_is_never_zero_so_that_its_logit_is_finite(monkeypatch, dtype):
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.zeros(shape, dtype=options["dtype"]))
    u = draw(3, dtype=dtype)
    assert (u > 0).all()
    assert (u.log() - torch.log1p(-u)).isfinite().all()
    assert (-u.log()).log().isfinite().all()


def test_replay_repeats_along_the_new_axis_only():
    noise = CommonNoise(CPU)
    once = draw(5, event=(3,))
    assert once.unique().numel() == 15
    with noise.replay(new_axis=1):
        twice = draw(2, 5, event=(3,))
    assert torch.equal(twice, once.expand(2, 5, 3))


def test_replay_counts_axes_from_the_right_so_that_inner_sample_axes_may_stand_left():
    noise = CommonNoise(CPU)
    once = draw(4, 5)
    with noise.replay(new_axis=1):
        again = draw(4, 2, 5)  # an inner estimator's 4 samples, the new axis, a batch of 5
    assert torch.equal(again, once.unsqueeze(1).expand(4, 2, 5))


def test_replays_nest():
    noise = CommonNoise(CPU)
    once = draw(5)
    with noise.replay(new_axis=1):
        inner = CommonNoise(CPU)
        twice = draw(2, 5)
        with inner.replay(new_axis=2):
            four = draw(3, 2, 5)
    assert torch.equal(twice, once.expand(2, 5))
    assert torch.equal(four, once.expand(3, 2, 5))


def test_axes_outside_the_batch_are_not_shared():
    noise = CommonNoise(CPU)
    with noise.replay(new_axis=3):
        assert draw(2, 5).unique().numel() == 10


def test_replaying_says_so_and_ends_with_the_context_even_by_an_error():
    noise = CommonNoise(CPU)
    assert not is_replaying()

    def fail():
        with noise.replay(new_axis=1):
            assert is_replaying()
            raise RuntimeError("in f")

    with pytest.raises(RuntimeError, match="in f"):
        fail()
    assert not is_replaying()
    assert draw(2, 5).unique().numel() == 10


@pytest.mark.parametrize("draws", [0, 1])
def test_noise_after_a_replay_is_new(draws):
    noise = CommonNoise(CPU)
    old = draw(100)
    with noise.replay(new_axis=1):
        for _ in range(draws):
            draw(2, 100)
    assert not torch.isin(draw(100), old).any()
