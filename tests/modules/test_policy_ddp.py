"""Two processes act in environments of their own, and learn one policy on one scale."""

import pytest
import torch

pytest.importorskip("gymnasium", reason="needs lightning-estimators[rl]")

from modules.processes import start_two
from modules.tiny import same

pytestmark = pytest.mark.filterwarnings("ignore")


def test_processes_act_apart_and_learn_together(tmp_path):
    one, other = start_two("policy_worker.py", tmp_path)
    assert same(one["weights"], other["weights"])
    assert same(one["scale"], other["scale"])
    assert one["scale"]["count"] == 2 * 3 * 2 * 8
    for first, second in zip(one["observations"], other["observations"], strict=True):
        assert not torch.equal(first, second)
    assert not torch.equal(torch.stack(one["actions"]), torch.stack(other["actions"]))
    assert one["logged"] == pytest.approx(other["logged"], nan_ok=True)
    assert one["logged"]["train/environment_steps"] == 2 * 3 * 2 * 8
