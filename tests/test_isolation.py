import random

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn

from lightning_estimators.isolation import isolated


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.Dropout().eval()
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("later", None)
        self.logged = []

    def log(self, name, value):
        self.logged.append(name)


def disturb(model):
    model.norm(torch.randn(5, 3))
    model.mean = torch.rand(2)
    model.later = torch.rand(2)
    model.norm.eval()
    model.frozen.train()
    random.random(), np.random.rand()
    model.log("inside", 1.0)
    model.log_dict({"inside": 1.0})


def state(model):
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    modes = [part.training for part in model.modules()]
    return buffers, modes, torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()


def check_same(before, after):
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert before[1] == after[1]
    assert torch.equal(before[2], after[2])
    assert before[3:] == after[3:]


def test_restores_everything():
    model = Model()
    before, mean, statistics = state(model), model.mean, model.norm.running_mean
    with isolated(model):
        disturb(model)
        assert not torch.equal(model.norm.running_mean, before[0]["norm.running_mean"])
    check_same(before, state(model))
    # The very tensors, to which optimizers and compiled code may hold on.
    assert model.mean is mean
    assert model.norm.running_mean is statistics
    assert model.later is None
    assert model.logged == []
    assert "log" not in vars(model)


def test_restores_after_an_error():
    model = Model()
    before = state(model)

    def fail():
        with isolated(model):
            disturb(model)
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fail()
    after = state(model)
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert before[1] == after[1]
    assert "log" not in vars(model)
