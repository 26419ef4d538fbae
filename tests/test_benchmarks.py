"""The benchmark runs, and what it compares with computes the same."""

import json

import pytest
import torch

from benchmarks import ours, plain, speed
from benchmarks.measure import Times, ratio
from benchmarks.problem import Problem


@pytest.mark.parametrize("hidden", [(), (7,)], ids=["linear", "nonlinear"])
@pytest.mark.parametrize("latent", ["bernoulli", "categorical"])
@pytest.mark.parametrize("estimator", plain.ESTIMATORS)
def test_plain_programs_estimate_the_same_gradient(estimator, latent, hidden):
    problem = Problem(latent, variables=5, categories=4, hidden=hidden, pixels=30, batch=6, samples=3)
    torch.manual_seed(0)
    model, reference = ours.model(problem, estimator), plain.ESTIMATORS[estimator](problem)
    mine = [*model.encoder.parameters(), *model.decoder.parameters(), model.prior]
    theirs = [*reference.encoder.parameters(), *reference.decoder.parameters(), reference.prior]
    with torch.no_grad():
        for one, other in zip(mine, theirs, strict=True):
            other.copy_(one)
    x = (torch.rand(6, 1, 1, 30) < 0.2).float()
    for module, batch in ((model, x), (reference, x.flatten(1))):
        for _ in range(2):  # the second REINFORCE has a baseline
            torch.manual_seed(1)
            module.zero_grad()
            module.loss(batch).mean().backward()
    for one, other in zip(mine, theirs, strict=True):
        assert other.grad.abs().max() > 0
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_quick_run_has_every_row(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        speed.main(["--quick", "--threads", "1", "--output", str(tmp_path / "speed.json")])
    finally:
        torch.set_num_threads(threads)
    results = json.loads((tmp_path / "speed.json").read_text())
    assert results["command"].startswith("python -m benchmarks.speed --quick")
    assert {"torch", "processor", "threads", "load_average"} <= results["environment"].keys()
    assert len(results["models"]) == 4
    for model in results["models"].values():
        assert set(model["rows"]) == set(ours.ESTIMATORS)
        assert all(("ours / plain" in row) == (name in plain.ESTIMATORS) for name, row in model["rows"].items())
    assert set(results["growth"]) == set(speed.GROWTH)
    assert set(results["fit"]["Concrete"]["rows"]) >= {"ours", "leanest", "loop"}
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in ours.ESTIMATORS)


def test_ratios_are_of_rounds():
    assert ratio(Times([2.0, 40.0, 6.0], [1.0] * 3), Times([1.0, 10.0, 2.0], [2.0] * 3)) == {
        "median": 3.0,
        "quartile1": 2.5,
        "quartile3": 3.5,
        "cpu_median": 0.5,
    }
