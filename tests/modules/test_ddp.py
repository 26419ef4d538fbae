"""Two processes (gloo, CPU), started once for all tests: see ddp_worker.py for what they do."""

from __future__ import annotations

import pytest
import torch

from modules.ddp_worker import ESTIMATORS, gradients
from modules.processes import start_two, start_two_nodes
from modules.tiny import same

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What the two processes saw."""
    return start_two("ddp_worker.py", tmp_path_factory.mktemp("ddp"))


def largest_difference(steps, others):
    pairs = [(step[name], other[name]) for step, other in zip(steps, others, strict=True) for name in step]
    return max(float((first - second).abs().max()) for first, second in pairs)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_gradients_are_those_of_one_process_on_the_joined_batch(ranks, name):
    alone = gradients(name, 0, 1)
    assert len(alone["gradients"]) == 3
    for step in alone["gradients"]:
        assert all(gradient.abs().max() > 1e-4 for gradient in step.values())
    for rank in ranks:
        seen = rank["gradients"][name]
        assert [step.keys() for step in seen["gradients"]] == [step.keys() for step in alone["gradients"]]
        assert largest_difference(seen["gradients"], alone["gradients"]) < 1e-6
        for buffer, value in alone["buffers"].items():
            torch.testing.assert_close(seen["buffers"][buffer], value, rtol=1e-6, atol=1e-6)
    assert ranks[0]["gradients"][name]["losses"] == pytest.approx(alone["losses"], rel=1e-6)


@pytest.mark.parametrize("name", ["REINFORCE-moving", "StochasticBackprop-sampled"])
def test_running_statistics_agree_to_the_last_bit(ranks, name):
    first, second = (rank["gradients"][name]["buffers"] for rank in ranks)
    assert first
    assert same(first, second)


def test_accumulated_gradients_are_those_of_one_process(ranks):
    alone = gradients("REBAR", 0, 1, accumulate_grad_batches=2)
    assert len(alone["gradients"]) == 2
    for rank in ranks:
        assert largest_difference(rank["accumulated"]["gradients"], alone["gradients"]) < 1e-6


def test_processes_draw_different_noise_from_one_seed(ranks):
    assert ranks[0]["seed"] == ranks[1]["seed"]
    draws = [tuple(draw) for rank in ranks for draw in rank["noise"]]
    assert len(draws) == len(set(draws)) == 12


@pytest.mark.parametrize("run", ["whole", "resumed", "window-whole"])
def test_weights_and_optimizers_are_the_same_in_all_processes(ranks, run):
    assert same(ranks[0][run]["state"], ranks[1][run]["state"])


def test_resuming_in_the_middle_of_an_epoch_changes_nothing(ranks):
    for rank in ranks:
        assert same(rank["resumed"]["state"], rank["whole"]["state"])
    whole = ranks[0]["whole"]["logged"]
    assert [step for step, metrics in whole if "train/loss" in metrics] == list(range(10))
    assert any("val/loss" in metrics for _, metrics in whole[4:])
    assert ranks[0]["cut"]["logged"] == whole[:4]
    assert ranks[0]["resumed"]["logged"] == whole[4:]


def test_resuming_in_the_middle_of_an_accumulation_window_changes_nothing(ranks):
    for rank in ranks:
        assert rank["window-whole"]["steps"] == rank["window-resumed"]["steps"] == 4
        assert same(rank["window-resumed"]["state"], rank["window-whole"]["state"])


def test_two_nodes_train_and_resume_as_two_processes_on_one_node_do(ranks, tmp_path):
    """Two agents of torchrun on the loopback address, each a node with one process."""
    for rank, node in zip(ranks, start_two_nodes("ddp_worker.py", "two-nodes", tmp_path), strict=True):
        assert same(node["state"], rank["whole"]["state"])


def test_one_process_that_is_not_finite_stops_all_before_the_step(ranks):
    for rank in ranks:
        assert "at step 2 (epoch 0, batch 2)" in rank["error"]
        assert all(tensor.isfinite().all() for tensor in rank["weights"].values())
    assert "0 of 4 per-example costs on process 0" in ranks[0]["error"]
    assert "1 of 4 per-example costs on process 1" in ranks[1]["error"]
    assert same(ranks[0]["weights"], ranks[1]["weights"])
