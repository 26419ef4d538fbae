"""What objects record of their construction."""

import copy
import functools
import pickle
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightning_estimators.baselines import LearnedBaseline, MovingAverage
from lightning_estimators.configurable import Configurable, Unrecorded, encode, import_path, unrecorded
from lightning_estimators.estimators import REBAR, REINFORCE, RELAX
from lightning_estimators.networks import MLP


class Base(Configurable, nn.Module):
    def __init__(self, size: int, scale: float = 2.0, name: str | None = None):
        super().__init__()
        self.size = size


class Derived(Base):
    def __init__(self, width: int, *, inner: nn.Module | None = None, **others):
        super().__init__(width + 1, **others)
        self.inner = inner


class Colour(Enum):
    RED = 1


def test_records_positional_arguments_and_defaults():
    assert Base(3).configuration()["init_args"] == {"size": 3, "scale": 2.0}
    assert Base(3, 4.0, name="x").configuration()["init_args"] == {"size": 3, "scale": 4.0, "name": "x"}


def test_a_subclass_records_its_own_call_not_the_one_it_makes():
    derived = Derived(3, inner=Base(1), scale=5.0)
    assert derived.size == 4
    path = derived.configuration()["class_path"]
    assert path.endswith("test_configurable.Derived")
    assert derived.configuration()["init_args"] == {
        "width": 3,
        "inner": {"class_path": path.replace("Derived", "Base"), "init_args": {"size": 1, "scale": 2.0}},
        "scale": 5.0,
    }


def test_class_paths_are_the_shortest_public_ones():
    assert RELAX().configuration()["class_path"] == "lightning_estimators.estimators.RELAX"
    assert import_path(LearnedBaseline) == "lightning_estimators.baselines.LearnedBaseline"
    assert import_path(torch.optim.Adam) == "torch.optim.Adam"

    class Local:
        pass

    assert import_path(Local) is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_copies_keep_the_record(copied):
    estimator = REINFORCE(LearnedBaseline(MLP(3, [4], 1), normalize=True), num_samples=2)
    assert copied(estimator).configuration() == estimator.configuration()
    assert estimator.configuration()["init_args"]["baseline"]["init_args"]["network"]["init_args"]["hidden"] == [4]


def test_later_changes_of_an_argument_do_not_matter():
    hidden = [4]
    network = MLP(3, hidden, 1)
    hidden.append(5)
    network.configuration()["init_args"]["hidden"].append(6)
    assert network.configuration()["init_args"]["hidden"] == [4]


def test_a_wrong_call_fails_as_it_would_without_the_record():
    with pytest.raises(TypeError, match="nonsense"):
        REBAR(nonsense=1)
    with pytest.raises(TypeError, match="size"):
        Base()


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float64(0.5), 0.5),
        (np.int64(3), 3),
        (True, True),
        (Path("a") / "b", "a/b"),
        (Colour.RED, "RED"),
        ({1: (2, [3])}, {"1": (2, [3])}),
        (torch.optim.SGD, "torch.optim.SGD"),
        (nn.functional.relu, "torch.nn.functional.relu"),
        (functools.partial(torch.optim.SGD, lr=0.5), {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}),
        (
            MovingAverage(0.5),
            {"class_path": "lightning_estimators.baselines.MovingAverage", "init_args": {"decay": 0.5}},
        ),
    ],
    ids=lambda value: type(value).__name__,  # the same in every process, as an address is not
)
def test_plain_data(value, plain):
    encoded = encode(value)
    assert encoded == plain
    assert type(encoded) is type(plain)


def test_what_has_no_plain_form_is_found_with_its_place():
    estimator = REINFORCE(LearnedBaseline(nn.Linear(3, 1)))
    (found,) = unrecorded({"estimator": estimator.configuration()})
    assert found == ("estimator.baseline.network", Unrecorded("torch.nn.modules.linear.Linear"))
    assert isinstance(encode(lambda x: x), Unrecorded)
    assert isinstance(encode(functools.partial(torch.optim.SGD, [])), Unrecorded)
