import pytest
import torch

from lightning_estimators.datamodules import Toy


def test_yields_zeros():
    data = Toy(batch_size=3, num_batches=4)
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader()) == 4
    assert all(torch.equal(batch, torch.zeros(3, 1)) for batch in batches)
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert [tuple(batch.shape) for batch in loader] == [(3, 1)]


def test_defaults():
    assert [tuple(batch.shape) for batch in Toy().train_dataloader()] == [(1, 1)] * 100


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"num_batches": 0}, {"num_batches": 1.5}])
def test_refuses(options):
    with pytest.raises(ValueError, match="must be an integer of at least 1"):
        Toy(**options)
