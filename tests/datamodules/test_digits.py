import torch
from sklearn.datasets import load_digits

from lightning_estimators.datamodules import Digits


def test_splits_are_all_the_digits_as_bytes():
    data = Digits(binarization="none")
    data.setup()
    assert [len(images) for images in data.splits] == [1400, 200, 197]
    ours = torch.cat(data.splits).flatten(1)
    theirs = torch.as_tensor(load_digits().data)
    assert (ours.min(), ours.max()) == (0, 255)

    def rows(images):
        return sorted(tuple(row) for row in images.tolist())

    assert rows((ours.double() / 255 * 16).round()) == rows(theirs)


def test_the_seed_decides_the_split():
    def test_images(seed):
        data = Digits(binarization="none", seed=seed)
        data.setup()
        return data.splits.test

    assert torch.equal(test_images(0), test_images(0))
    assert not torch.equal(test_images(0), test_images(1))
