"""The benchmark runs, and what it compares with computes the same."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.speed import gpu, measure, package, plain, storchastic
from benchmarks.speed.__main__ import main
from benchmarks.speed.measure import Times, alternate, ratio
from benchmarks.speed.parts import GROWTH
from benchmarks.speed.plain import Problem, tiny
from benchmarks.speed.report import fill, table_3, write
from benchmarks.speed.targets import targets
from lightning_estimators.modules import DiscreteLatentModel


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("speed") / "speed.json"
    threads = torch.get_num_threads()
    try:
        main(["--quick", "--threads", "1", "--output", str(path)])
    finally:
        torch.set_num_threads(threads)
    return json.loads(path.read_text())


@pytest.mark.parametrize("hidden", [(), (7,)], ids=["linear", "nonlinear"])
@pytest.mark.parametrize("latent", ["bernoulli", "categorical"])
@pytest.mark.parametrize("estimator", plain.ESTIMATORS)
def test_plain_programs_estimate_the_same_gradient(estimator, latent, hidden):
    problem = Problem(latent, variables=5, categories=4, hidden=hidden, pixels=30, batch=6, samples=3)
    torch.manual_seed(0)
    model, reference = package.model(problem, package.ESTIMATORS[estimator](3)), plain.ESTIMATORS[estimator](problem)
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


def test_quick_run_has_every_row(results):
    assert set(results) == {"models", "growth", "fit", "memory", "storchastic"}
    for part in results.values():
        assert part["command"].startswith("python -m benchmarks.speed --quick")
        assert {"torch", "processor", "threads", "load_average"} <= part["environment"].keys()
    models = results["models"]["tables"]
    assert len(models) == 6
    assert set(models.pop("six latents")["rows"]) == {"Enumeration"}
    assert set(models.pop("spread weights")["rows"]) == {"Concrete", "StochasticBackprop"}
    for model in models.values():
        assert set(model["rows"]) == set(package.ESTIMATORS) - {"Enumeration"}
        assert all(("ours / plain" in row) == (name in plain.ESTIMATORS) for name, row in model["rows"].items())
    assert set(results["growth"]["tables"]) == set(GROWTH)
    assert set(results["fit"]["tables"]["Concrete"]["rows"]) >= {"ours", "leanest", "loop"}
    assert results["memory"]["tables"]["D"]["values"]["4"]["ours"]["process_mib"] > 50


def test_documents_tables_and_figures_are_made_from_results(results, tmp_path):
    document = Path(__file__).parents[1] / "docs" / "speed.md"
    copy = tmp_path / "speed.md"
    copy.write_text(document.read_text())
    write(copy, results)
    # Prose stays, tables change; what was not run stays as it was.
    before, after = (re.split(r"(<!-- [^>]+ -->)", path.read_text()) for path in (document, copy))
    assert before[::4] == after[::4]
    changed = {before[i] for i in range(1, len(before), 4) if before[i + 1] != after[i + 1]}
    assert changed == {
        f"<!-- {name} -->" for name in ("environment", "steps", "growth", "table 3", "memory", "fit", "targets")
    }
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"speed_steps.png", "speed_growth.png"}
    assert "| REINFORCE: loop |" in copy.read_text()


def test_a_document_without_marks_is_refused():
    with pytest.raises(ValueError, match="<!-- fit -->"):
        fill("# Speed\n<!-- steps --><!-- end -->\n", {"fit": "| |"})


def test_table_3_is_ratios_to_one_sample_of_gumbel_softmax():
    row = {"StochasticBackprop, ours": {"/ first plain Concrete": {"median": 2.0}, "/ plain Concrete": {"median": 1.5}}}
    lines = table_3({"S, categorical": {"values": {"5": row}}, "S, categorical nonlinear": {"values": {}}})
    assert lines[2:] == ["| one linear layer | 5 | 2.66 | 2.00 |  | 1.50 |  |"]  # 10.93 s / 4.11 s


def test_targets_are_judged_by_what_was_measured():
    rows = {"RELAX": {"ours / Storchastic": {"median": 0.4}}}
    worse = {"RELAX": {"ours / Storchastic": {"median": 0.6}}}
    lines = targets({"models": {"bernoulli linear": {"rows": rows}, "categorical linear": {"rows": worse}}}).split("\n")
    assert "| RELAX one-layer: Bernoulli, categorical | Storchastic | 0.5 | 0.40, 0.60 | met by 1 of 2 |" in lines
    assert "| every estimator, the slowest | Storchastic | 0.8 | 0.60 | met |" in lines
    assert sum("not measured" in line for line in lines) == len(lines) - 4


def test_peak_counts_what_steps_hold_at_once_and_growth_what_they_keep():
    kept = []

    def transient():
        torch.ones(2**23).sum()  # 32 MiB

    def leaking():
        kept.append(torch.ones(2**20))  # 4 MiB

    assert measure.peak(lambda: transient)["program_mib"] == pytest.approx(32, abs=2)
    assert measure.growth(lambda: leaking, steps=8, first=2)["mib_per_step_collected"] == pytest.approx(4, abs=0.5)


@pytest.fixture
def peer(tmp_path):
    """A process that claims a loss of 7 for everything, and knows no RELAX."""
    python = tmp_path / "python"
    python.write_text(
        f"""#!{sys.executable}
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    answers = {{"versions": {{}}, "loss": 7.0, "make": 0, "run": [2.0, 1.0]}}
    fails = asked["of"].get("estimator") == "RELAX"
    print(json.dumps({{"error": "no RELAX"}} if fails else {{"answer": answers[asked["ask"]]}}), flush=True)
"""
    )
    python.chmod(0o755)
    with storchastic.Storchastic(python, threads=1) as peer:
        yield peer


def test_another_loss_is_refused(peer):
    with pytest.raises(RuntimeError, match=r"expected one loss of REBAR .* 7\.0 of Storchastic"):
        peer.program(tiny(Problem()), "REBAR")


def test_the_same_loss_is_timed_by_the_other_process(peer, monkeypatch):
    monkeypatch.setattr(DiscreteLatentModel, "loss", lambda self, batch: torch.full((5,), 7.0))
    assert peer.program(tiny(Problem()), "REBAR")(3) == (2.0, 1.0)
    assert peer.program(tiny(Problem()), "StochasticBackprop") is None


def test_errors_of_the_other_process_are_told(peer):
    with pytest.raises(RuntimeError, match=r"asked for peak .* no RELAX"):
        peer.peak(tiny(Problem()), "RELAX")


def test_programs_take_turns():
    turns = []

    def program(name):
        def run(steps):
            turns.append(name)
            return steps * 2.0, steps * 1.0

        return run

    times = alternate({"a": program("a"), "b": program("b")}, seconds=0.0)
    assert times["a"].wall == [2.0, 2.0, 2.0]
    assert times["b"].cpu == [1.0, 1.0, 1.0]
    assert turns[-6:] == ["a", "b"] * 3


def test_ratios_are_of_rounds():
    assert ratio(Times([1.0] * 3, [2.0, 40.0, 6.0]), Times([2.0] * 3, [1.0, 10.0, 2.0])) == {
        "median": 3.0,
        "quartile1": 2.5,
        "quartile3": 3.5,
        "wall_median": 0.5,
    }


def test_the_checks_for_a_gpu_run_without_one(capsys, monkeypatch):
    monkeypatch.setattr(gpu, "MODELS", ("categorical nonlinear",))
    monkeypatch.setattr(gpu, "ESTIMATORS", ["REINFORCE", "StochasticBackprop"])
    assert gpu.main(["--device", "cpu", "--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if "FAILED" in line or "BAD" in line]
    assert sum("relative error 0.0e+00" in line for line in lines) == 4


def test_without_a_gpu_nothing_is_claimed(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert "There is no GPU here" in out.err
