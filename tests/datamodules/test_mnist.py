import shutil

import numpy as np
import pytest
import torch
import torchvision
from image_files import write_idx

from lightning_estimators.datamodules import MNIST, FashionMNIST

BOTH = pytest.mark.parametrize("cls", [MNIST, FashionMNIST])


@BOTH
def test_splits_are_those_of_the_files(cls, generated_root):
    data = cls(generated_root, binarization="none")
    data.setup("fit")
    train = getattr(torchvision.datasets, cls.__name__)(generated_root, train=True).data
    test = getattr(torchvision.datasets, cls.__name__)(generated_root, train=False).data
    assert [tuple(images.shape) for images in data.splits] == [(250, 1, 28, 28), (50, 1, 28, 28), (60, 1, 28, 28)]
    assert torch.equal(torch.cat(data.splits[:2]).squeeze(1), train)
    assert torch.equal(data.splits.test.squeeze(1), test)
    torch.testing.assert_close(data.mean[0], train[:250].double().mean(0).div(255).float())


@pytest.mark.parametrize(("cls", "grey", "test_grey"), [(MNIST, 0.1307, 0.1325), (FashionMNIST, 0.2860, 0.2869)])
def test_real_files(cls, grey, test_grey, data_root, generated_root):
    if data_root == generated_root:
        pytest.skip("no real files at hand")
    data = cls(data_root, binarization="none")
    data.setup()
    assert [len(images) for images in data.splits] == [50_000, 10_000, 10_000]
    assert torch.cat(data.splits[:2]).double().mean().item() / 255 == pytest.approx(grey, abs=2e-4)
    assert data.splits.test.double().mean().item() / 255 == pytest.approx(test_grey, abs=2e-4)


@BOTH
def test_missing_files_are_named_with_the_folder_and_the_remedy(cls, tmp_path, generated_root):
    with pytest.raises(FileNotFoundError) as error:
        cls(tmp_path).setup("fit")
    folder = str(tmp_path / cls.__name__ / "raw")
    for part in (folder, "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte", "download=True", "--data.download true"):
        assert part in str(error.value)

    shutil.copytree(generated_root / cls.__name__, tmp_path / cls.__name__)
    (tmp_path / cls.__name__ / "raw" / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks t10k-images-idx3-ubyte\. Download"):
        cls(tmp_path).setup("test")


def test_damaged_files_are_named(tmp_path, generated_root):
    shutil.copytree(generated_root / "MNIST", tmp_path / "MNIST")
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"the train files in .* are damaged .* download=True"):
        MNIST(tmp_path).setup()


def test_a_failed_download_is_explained(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", no_network)
    with pytest.raises(RuntimeError, match=r"MNIST could not be downloaded into .*Error downloading(.|\n)*connection"):
        MNIST(tmp_path, download=True).prepare_data()


def test_an_unwritable_root_is_explained(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RuntimeError, match="could not be downloaded into"):
        MNIST(tmp_path / "file", download=True).prepare_data()


def test_nothing_is_downloaded_when_the_files_are_there(generated_root, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: pytest.fail("went to the network"))
    data = MNIST(generated_root, download=True)
    data.prepare_data()
    data.setup()


def numbered(folder, split, count, labels=None):
    """Files in the format of MNIST with any number of images, all black."""
    folder.mkdir(parents=True, exist_ok=True)
    write_idx(folder / f"{split}-images-idx3-ubyte", np.zeros((count, 28, 28), np.uint8))
    write_idx(folder / f"{split}-labels-idx1-ubyte", np.zeros(count if labels is None else labels, np.uint8))


@BOTH
@pytest.mark.parametrize(("split", "count"), [("train", 60_000), ("t10k", 10_000)])
def test_files_of_the_published_size_must_have_the_published_contents(cls, split, count, tmp_path):
    for name, size in (("train", 90), ("t10k", 10)):
        numbered(tmp_path / cls.__name__ / "raw", name, count if name == split else size)
    with pytest.raises(ValueError, match=rf"the {split} files in .* are damaged .the MD5 sum of {split}-images"):
        cls(tmp_path).setup()


def test_numbers_of_images_and_labels_must_agree(tmp_path):
    numbered(tmp_path / "MNIST" / "raw", "train", 90)
    numbered(tmp_path / "MNIST" / "raw", "t10k", 10, labels=9)
    with pytest.raises(ValueError, match=r"the t10k files in .* are damaged .10 images, but 9 labels"):
        MNIST(tmp_path).setup()


def test_files_of_other_sizes_and_of_other_datasets_are_used_as_they_are(tmp_path):
    class KMNIST(MNIST):
        dataset = torchvision.datasets.KMNIST

    for cls, counts in ((MNIST, (10_000, 60)), (KMNIST, (60_000, 10_000))):
        for split, count in zip(("train", "t10k"), counts, strict=True):
            numbered(tmp_path / cls.__name__ / "raw", split, count)
        data = cls(tmp_path)
        data.setup()
        assert len(data.splits.test) == counts[1]


@BOTH
def test_exchanged_real_files_are_noticed(cls, data_root, generated_root, tmp_path):
    if data_root == generated_root:
        pytest.skip("no real files at hand")
    source, folder = data_root / cls.__name__ / "raw", tmp_path / cls.__name__ / "raw"
    folder.mkdir(parents=True)
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        (folder / f"train-{kind}").symlink_to(source / f"t10k-{kind}")
        (folder / f"t10k-{kind}").symlink_to(source / f"train-{kind}")
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte holds what should be in t10k-images-idx3-ubyte"):
        cls(tmp_path).setup()


def test_damaged_files_are_called_damaged_where_a_download_is_allowed(tmp_path, generated_root, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: pytest.fail("went to the network"))
    shutil.copytree(generated_root / "MNIST", tmp_path / "MNIST")
    for kept in (0, 100):
        file = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
        file.write_bytes(file.read_bytes()[:kept])
        data = MNIST(tmp_path, download=True)
        data.prepare_data()
        with pytest.raises(ValueError, match=r"the t10k files in .* are damaged"):
            data.setup()
