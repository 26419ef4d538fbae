import warnings

import pytest
import torch

from lightning_estimators.datamodules import Batches
from lightning_estimators.datamodules.batches import sample_pixels
from lightning_estimators.datamodules.indexed import seeded_generator


def numbered(count):
    """Images that tell which they are: image i is the byte i."""
    return torch.arange(count, dtype=torch.uint8)[:, None]


def numbers(batch):
    return (batch * 255).round().int().flatten().tolist()


def epoch(loader):
    return [numbers(batch) for batch in loader]


def flat(batches):
    return [number for batch in batches for number in batch]


def test_yields_every_image_once_as_floats():
    images = torch.randint(256, (7, 1, 2, 3), dtype=torch.uint8)
    batches = list(Batches(images, 3))
    assert [tuple(batch.shape) for batch in batches] == [(3, 1, 2, 3), (3, 1, 2, 3), (1, 1, 2, 3)]
    assert all(batch.dtype == torch.float32 for batch in batches)
    torch.testing.assert_close(torch.cat(batches), images.float() / 255, rtol=0, atol=0)


def test_every_epoch_has_an_order_of_its_own_decided_by_the_seed():
    loader, again, other = (Batches(numbered(50), 8, shuffle=True, seed=seed) for seed in (1, 1, 2))
    first, second = epoch(loader), epoch(loader)
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(50))
    assert first != second
    assert [epoch(again), epoch(again)] == [first, second]
    assert epoch(other) != first
    again.sampler.set_epoch(0)
    assert epoch(again) == first


def test_without_shuffling_the_order_stays():
    loader = Batches(numbered(10), 4)
    assert epoch(loader) == epoch(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_pixels_are_on_with_the_probability_of_their_byte():
    levels = torch.tensor([0, 1, 64, 128, 200, 254, 255], dtype=torch.uint8)
    draws = 200_000
    on = sample_pixels(levels.expand(draws, -1), seeded_generator(3)).double().mean(0)
    p = levels.double() / 255
    assert on[0] == 0
    assert on[-1] == 1
    # 5 standard errors: false alarms in 5 of the 5 levels together are rarer than 3 in a million.
    assert ((on - p).abs() <= 5 * (p * (1 - p) / draws).sqrt()).all()


def test_the_noise_of_pixels_is_uniform_on_255_values():
    """Of one draw of 255 bytes per level v, those below it are v / 255: compared over all levels with one noise."""
    levels = torch.arange(256, dtype=torch.uint8)
    on = torch.stack([sample_pixels(levels[v].expand(25_500), seeded_generator(4)) for v in range(256)])
    counts = on.sum(1).diff().double()  # how often the noise was 0, 1, ..., 254
    assert len(counts) == 255
    assert counts.sum() == 25_500
    # Chi-squared with 254 degrees of freedom: mean 254, standard deviation 22.5.
    assert abs((counts - 100).square().sum() / 100 - 254) < 5 * 22.5


def test_resampled_pixels_are_new_at_each_visit_and_independent_of_other_noise():
    images = torch.full((40, 30), 128, dtype=torch.uint8)
    loader = Batches(images, 20, resample=True, seed=5)
    first = list(loader)
    second = list(loader)
    visits = torch.stack([*first, *second])
    assert set(visits.unique().tolist()) == {0.0, 1.0}
    # Any two batches, within an epoch or across epochs, agree in half of their 600 pixels: 5 standard errors are 0.1.
    for i in range(4):
        for j in range(i):
            assert abs((visits[i] == visits[j]).double().mean().item() - 0.5) < 0.11

    again = Batches(images, 20, resample=True, seed=5)
    for batch, expected in zip(again, first, strict=True):
        torch.rand(7)
        assert torch.equal(batch, expected)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    list(Batches(numbered(20), 3, shuffle=True, resample=True))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("count", [1, 12, 23, 24, 25, 197])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_evaluation_shards_partition_the_images(count, world_size, batch_size):
    shards = [
        epoch(Batches(numbered(count), batch_size, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    assert sorted(flat(flat(shards))) == list(range(count))
    sizes = [[len(batch) for batch in shard] for shard in shards]
    assert all(1 <= size <= batch_size for shard in sizes for size in shard)
    counts = [len(shard) for shard in shards]
    assert max(counts) - min(counts) <= (1 if batch_size == 1 or count < world_size else 0)
    lengths = [len(Batches(numbered(count), batch_size, rank=r, world_size=world_size)) for r in range(world_size)]
    assert counts == lengths


@pytest.mark.parametrize("count", [1, 12, 23, 24, 25, 197])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_training_shards_are_equal_and_make_up_the_batches_of_one_process(count, world_size, batch_size):
    shards = [
        epoch(Batches(numbered(count), batch_size, shuffle=True, seed=3, pad=True, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    together = [flat(batches) for batches in zip(*shards, strict=True)]  # equal numbers of batches
    assert len({tuple(len(batch) for batch in shard) for shard in shards}) == 1
    shown = flat(together)
    assert set(shown) == set(range(count))
    assert len(shown) - count < world_size
    alone = epoch(Batches(numbered(count), batch_size * world_size, shuffle=True, seed=3, pad=True))
    for index, batch in enumerate(alone):
        assert set(together[index]) >= set(batch)
        if index < len(alone) - 1:
            assert sorted(together[index]) == sorted(batch)


def test_ranks_draw_different_pixels():
    images = torch.full((2, 600), 128, dtype=torch.uint8)
    one, two = (next(iter(Batches(images, 1, resample=True, pad=True, rank=rank, world_size=2))) for rank in (0, 1))
    assert abs((one == two).double().mean().item() - 0.5) < 0.11


@pytest.mark.parametrize("stop", range(1, 10))
@pytest.mark.parametrize("shard", [{}, {"rank": 1, "world_size": 2}])
def test_resumes_in_the_middle_of_any_epoch(stop, shard):
    count = 10 * shard.get("world_size", 1)

    def loader():
        images = torch.full((count, 20), 99, dtype=torch.uint8)
        return Batches(images, 4, shuffle=True, resample=True, seed=2, pad=True, **shard)

    whole = loader()
    expected = [batch for _ in range(4) for batch in whole]

    interrupted, taken = loader(), []
    while len(taken) < stop:
        for batch in interrupted:
            taken.append(batch)
            if len(taken) == stop:
                break
    state = interrupted.state_dict()

    resumed = loader()
    iter(resumed)  # must not count: nothing was taken from it
    resumed.load_state_dict(state)
    assert len(resumed) == 3
    while len(taken) < 12:
        taken.extend(resumed)
    assert len(taken) == 12
    assert all(torch.equal(a, b) for a, b in zip(taken, expected, strict=True))


def test_what_set_epoch_counts_is_aligned_with_the_loaded_state():
    def orders(loader, first):
        seen = []
        for number in (first, first + 1):
            loader.set_epoch(number)
            seen.append(epoch(loader))
        return seen

    expected = [epoch(whole) for whole in [Batches(numbered(9), 3, shuffle=True)] for _ in range(3)]
    loader = Batches(numbered(9), 3, shuffle=True)
    assert orders(loader, 1) == expected[1:]

    for announced in ([1], [1, 2], [7]):
        loader = Batches(numbered(9), 3, shuffle=True)
        loader.load_state_dict({**loader.state_dict(), "epoch": 1, "next": 2})
        for number in announced[:-1]:
            loader.set_epoch(number)
        assert orders(loader, announced[-1]) == [expected[1][2:], expected[2]]


@pytest.mark.parametrize(("limit", "taken"), [(2, 2), (0.5, 2), (99, 5), (1.0, 5)])
def test_a_state_saved_at_the_limit_is_at_the_end_of_the_epoch(limit, taken):
    loader = Batches(numbered(20), 4, limit=limit)
    for _ in zip(range(taken), loader):  # noqa: B905
        pass
    resumed = Batches(numbered(20), 4, limit=limit)
    resumed.load_state_dict(loader.state_dict())
    assert (resumed.epoch, len(epoch(resumed))) == (1, 5)


def test_warns_when_the_rest_of_the_epoch_cannot_be_the_same():
    loader = Batches(numbered(20), 4, shuffle=True)
    next(iter(loader))
    with pytest.warns(UserWarning, match="batch_size was 4 and is 5, world_size was 1 and is 2"):
        Batches(numbered(20), 5, shuffle=True, world_size=2).load_state_dict(loader.state_dict())
    list(loader)
    with warnings.catch_warnings():  # between epochs anything may change
        warnings.simplefilter("error")
        Batches(numbered(20), 5, shuffle=True).load_state_dict(loader.state_dict())


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.zeros(3, 1), {}, "must be bytes"),
        (numbered(0), {}, "no images"),
        (numbered(3), {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (numbered(3), {"rank": 2, "world_size": 2}, "rank=2, world_size=2"),
    ],
)
def test_refuses(images, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Batches(images, **{"batch_size": 2, **options})
