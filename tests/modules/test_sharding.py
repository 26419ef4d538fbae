"""FSDP2 on two processes (gloo, CPU), started once for all tests: see sharding_worker.py for what they do."""

from __future__ import annotations

import pytest

from modules.processes import start_two
from modules.sharding_worker import ESTIMATORS, train

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What the two processes saw."""
    return start_two("sharding_worker.py", tmp_path_factory.mktemp("sharding"))


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_weights_are_those_of_one_process_on_the_joined_batch(ranks, name):
    alone = train(name, 0, 1)
    for rank in ranks:
        assert len(rank[name]["sharded"]) == 8  # encoder and decoder
        assert largest_difference(rank[name]["weights"], alone["weights"]) < 1e-6
        assert rank[name]["states"] == alone["states"] >= 8
    assert ranks[0][name]["losses"] == pytest.approx(alone["losses"], rel=1e-6)


def test_a_distributed_checkpoint_resumes_exactly(ranks):
    for rank in ranks:
        assert largest_difference(rank["resumed"]["weights"], rank["uninterrupted"]["weights"]) == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("REBAR", "estimator (REBAR) learns by the derivative of the gradient of the cost"),
        ("RelaxedREBAR", "estimator (RelaxedREBAR) learns by the derivative of the gradient of the cost"),
        ("RELAX", "the parameters of estimator (RELAX) are sharded"),
        ("REINFORCE-learned", "the parameters of estimator (REINFORCE) are sharded"),
    ],
)
def test_what_torch_cannot_learn_through_sharded_weights_is_refused(ranks, name, message):
    for rank in ranks:
        assert message in rank[f"{name} refused"]
