import os
import shutil
import warnings

import pytest
import torch
from PIL import Image

from lightning_estimators.datamodules import Omniglot
from lightning_estimators.datamodules.omniglot import PARTS

CACHE = "omniglot-py/omniglot-28x28.pt"


@pytest.fixture
def root(tmp_path, generated_root):
    shutil.copytree(generated_root / "omniglot-py", tmp_path / "omniglot-py", ignore=shutil.ignore_patterns("*.pt*"))
    return tmp_path


def splits(root, **options):
    data = Omniglot(root, binarization="none", **options)
    data.setup()
    return data.splits


def keys(images):
    return [image.numpy().tobytes() for image in images]


def no_reading(monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *args: pytest.fail("read a drawing in spite of the cache"))


def test_counts_shapes_and_ink(root):
    train, val, test = splits(root)
    # 6 characters, 15 drawings of each to train (of which 1345/24345 to validate) and 5 to test
    assert [tuple(images.shape) for images in (train, val, test)] == [(85, 1, 28, 28), (5, 1, 28, 28), (30, 1, 28, 28)]
    everything = torch.cat([train, val, test])
    assert 0.02 < everything.double().mean() / 255 < 0.3  # strokes on an empty background
    assert everything[:, 0, 0, :].max() == 0  # no ink at the border
    assert everything.amax((1, 2, 3)).min() > 100
    assert len(everything.unique()) > 20  # antialiased, not decimated


def test_every_character_gives_15_to_train_and_5_to_test(root):
    # Paint the drawings of each character in one column of its own, so that they can be told apart.
    paths = sorted(root.rglob("*.png"))
    for index, path in enumerate(paths):
        image = Image.new("1", (105, 105), 1)
        image.paste(0, (15 * (index // 20), 0, 15 * (index // 20) + 15, 105))
        image.save(path)
    train, val, test = splits(root)

    def characters(images):
        return torch.bincount((images[:, 0, 5] > 127).double().argmax(1) // 4, minlength=6).tolist()

    assert characters(torch.cat([train, val])) == [15] * 6
    assert characters(test) == [5] * 6


def test_splits_are_disjoint_and_seeded(root):
    train, val, test = (keys(images) for images in splits(root))
    assert len({*train, *val, *test}) == 120
    again = splits(root)
    assert [keys(images) for images in again] == [train, val, test]
    other = splits(root, seed=1)
    assert set(keys(other.test)) != set(test)
    assert set(keys(other.val)) != set(val)


def test_conversion_is_cached_in_one_file(root, monkeypatch):
    first = splits(root)
    assert (root / CACHE).is_file()
    assert not list(root.rglob("*.tmp"))
    no_reading(monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(first, splits(root), strict=True))


def rewrite(change):
    def damage(path):
        cache = torch.load(path, weights_only=True)
        change(cache)
        torch.save(cache, path)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: path.write_text("nonsense"),
        lambda path: path.write_bytes(b""),
        lambda path: torch.save([1, 2], path),
        rewrite(lambda cache: cache["images"].view(-1)[:1].add_(1)),
        rewrite(lambda cache: cache.update(source="of another conversion")),
    ],
    ids=["truncated", "nonsense", "empty", "foreign", "flipped", "stale"],
)
def test_a_damaged_or_stale_cache_is_made_again(root, damage, monkeypatch):
    first = splits(root)
    damage(root / CACHE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(torch.equal(a, b) for a, b in zip(first, splits(root), strict=True))
    no_reading(monkeypatch)
    splits(root)


def test_changed_drawings_make_the_cache_stale(root):
    first = splits(root)
    path = min(root.rglob("*.png"))
    Image.new("1", (105, 105), 0).save(path)
    assert not all(torch.equal(a, b) for a, b in zip(first, splits(root), strict=True))


def test_works_without_a_cache_where_nothing_can_be_written(root):
    (root / CACHE).mkdir()  # as good as a folder without permission, also for root
    with pytest.warns(UserWarning, match="could not be kept in .*omniglot-28x28.pt") as caught:
        first = splits(root)
    assert len(caught) == 1
    assert len(first.train) == 85
    assert not list(root.rglob("*.tmp"))


def test_any_zip_or_none_will_do(root):
    for part in ("images_background", "images_evaluation"):
        (root / "omniglot-py" / f"{part}.zip").unlink()
    assert len(splits(root).train) == 85


def test_missing_files_are_named_with_the_folder_and_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        Omniglot(tmp_path).setup("fit")
    for part in (str(tmp_path / "omniglot-py"), "images_background", "images_evaluation", "--data.download true"):
        assert part in str(error.value)


def test_an_incomplete_unpacking_is_noticed_and_mended(root, monkeypatch):
    shutil.rmtree(root / "omniglot-py" / "images_background" / "Greek" / "character02")
    with pytest.raises(FileNotFoundError, match=r"lacks 20 of the drawings in images_background.zip, as .*Greek"):
        Omniglot(root).setup()
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: pytest.fail("went to the network"))
    data = Omniglot(root, download=True)
    data.prepare_data()
    data.setup()
    assert len(data.splits.train) == 85

    for archive in root.rglob("*.zip"):
        archive.unlink()
    os.remove(root / "omniglot-py" / "images_evaluation" / "Angelic" / "character01" / "0001_03.png")
    with pytest.raises(FileNotFoundError, match=r"Angelic/character01 \(expected 20, found 19\)"):
        Omniglot(root).setup()


def test_a_damaged_drawing_is_named(root):
    path = min(root.rglob("*.png"))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=rf"{path.name}' is damaged"):
        splits(root)


def test_a_failed_download_is_explained(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(RuntimeError, match=r"Omniglot could not be downloaded into .*Name or service not known"):
        Omniglot(tmp_path, download=True).prepare_data()


def test_real_files(omniglot_root, generated_root):
    if omniglot_root == generated_root:
        pytest.skip("no real files at hand")
    train, val, test = splits(omniglot_root)
    assert [len(images) for images in (train, val, test)] == [23_000, 1345, 8115]
    assert train.double().mean().item() / 255 == pytest.approx(0.0805, abs=2e-3)


@pytest.mark.parametrize("change", [-1, 1])
def test_the_whole_dataset_without_one_character_is_incomplete(change, root, monkeypatch):
    for archive in root.rglob("*.zip"):
        archive.unlink()
    # The made-up evaluation part has 2 characters: let the published one have one more, or one less.
    monkeypatch.setitem(PARTS, "images_evaluation", 2 - change)
    with pytest.raises(FileNotFoundError, match=rf"characters in images_evaluation .expected {2 - change}, found 2"):
        Omniglot(root).setup()
    monkeypatch.setitem(PARTS, "images_evaluation", 2)
    assert len(splits(root).train) == 85
