"""The papers' small experiments run, go on after an interruption, and are reported."""

import fcntl
import json
import math
import shutil

import lightning.pytorch as pl
import pytest
import torch

from benchmarks.__main__ import EXPERIMENTS, main
from benchmarks.comparison import (
    Claim,
    Finding,
    Seeds,
    answer,
    extreme,
    grouped,
    seeds,
    stated,
)
from benchmarks.experiment import Run
from benchmarks.figures import Panel, band, draw
from benchmarks.fit_experiment import KeepCurves, late_log_mean, late_mean
from benchmarks.plan import Rows
from benchmarks.toy import Toy

TOY = {"target": 0.45, "steps": 100, "lr": 0.01, "estimator": "REBAR", "seed": 0, "quick": 1}


def command(*words):
    """Run `python -m benchmarks` in this process."""
    threads = torch.get_num_threads()
    try:
        main([*map(str, words)])
    finally:
        torch.set_num_threads(threads)


def row(metric=1.0, **settings):
    return {"experiment": "toy", "command": "?", "settings": settings, "metrics": {"loss": metric}, "curves": {}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A few quick runs of every small experiment, with their report."""
    folder = tmp_path_factory.mktemp("runs")
    plan = folder / "plan.txt"
    plan.write_text(
        """
        toy --quick --estimator REBAR StochasticBackprop --steps 100
        gamma --quick --dimension 2 --estimator StochasticBackprop StochasticBackprop-jump
        regression --quick --epochs 1 --estimator StochasticBackprop-N4  # a comment
        divergence --quick
        """
    )
    command("plan", plan, "--quick", "--runs", folder)
    return folder


@pytest.mark.parametrize(("name", "count"), [("toy", 3), ("gamma", 2), ("regression", 1), ("divergence", 2)])
def test_rows_are_complete(finished, name, count):
    rows = Rows(finished / "quick").of(name)
    assert len(rows) == count
    for one in rows:
        assert one["metrics"]
        assert all(math.isfinite(value) for value in one["metrics"].values())
        assert set(one["settings"]) == {*EXPERIMENTS[name].axes, "quick"}
        assert all(len(c["step"]) == len(c["value"]) > 0 for c in one["curves"].values())
        assert set(one["curves"]) >= {"toy": {"loss", "theta", "log_variance"}, "gamma": {"loss", "log_variance"}}.get(
            name, set()
        )


def test_report_has_tables_claims_and_figures(finished):
    report = (finished / "quick" / "RESULTS.md").read_text()
    assert "| 0.45 | REBAR | 1 |" in report
    assert "| 0.45 | StochasticBackprop | 1 | 0.0" in report
    assert "| squares, 100 steps | seeds | final loss, d = 2 |" in report
    assert "| StochasticBackprop-jump | 1 |" in report
    assert "| StochasticBackprop-N4 | 1 | -4" in report
    assert "| exact | series, N = 2 | series, N = 4 | series, N = 6 | series, N = 8 | series, N = 10 |" in report
    assert "| -0.6181 | -1.4225 | 0.8043 | -3.5603 | 6.7337 | -24.8751 |" in report
    for name in ("toy_100", "gamma_squares_100", "regression_1", "divergence"):
        assert f"figures/{name}.png)" in report
        assert (finished / "quick" / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "matter there where the series is truncated? | **Not run** |" in report  # no N = 8
    assert "converge faster for gamma variables? | **Not run** |" in report  # no REINFORCE
    assert "Does the truncated series diverge? | **Yes** |" in report
    assert len(report.splitlines()) < 300


def test_finished_runs_are_not_repeated(finished, tmp_path, capsys):
    shutil.copy(finished / "quick" / "divergence.jsonl", tmp_path)
    before = (tmp_path / "divergence.jsonl").read_bytes()
    command("divergence", "--quick", "--results", tmp_path, "--runs", tmp_path)
    assert "2 of 2 runs done\n2 of 2 runs done" in capsys.readouterr().err
    assert (tmp_path / "divergence.jsonl").read_bytes() == before


def test_finished_runs_can_be_compared_with_themselves(finished, tmp_path, capsys):
    rows = finished / "quick" / "divergence.jsonl"
    words = ["divergence", "--quick", "--results", tmp_path, "--runs", tmp_path, "--seed", 0, "--repeat"]
    command(*words)
    assert "None of these runs has a row" in capsys.readouterr().out
    (tmp_path / "divergence.jsonl").write_text(rows.read_text())
    command(*words)
    assert "the same, bit for bit" in capsys.readouterr().out
    other = json.loads(rows.read_text().splitlines()[0])
    other["metrics"]["jump"] += 1
    (tmp_path / "divergence.jsonl").write_text(json.dumps(other) + "\n")
    command(*words)
    out = capsys.readouterr().out
    assert "not the same bit for bit" in out
    assert "(-1)" in out
    assert json.loads((tmp_path / "divergence.jsonl").read_text()) == other


def test_what_an_exact_estimator_does_to_the_toy_is_known(finished):
    (one,) = [r for r in Rows(finished / "quick").of("toy") if r["settings"]["estimator"] == "StochasticBackprop"]
    logit = torch.zeros(1, requires_grad=True)
    adam = torch.optim.Adam([logit], lr=0.01)
    for _ in range(100):
        adam.zero_grad()
        (logit.sigmoid() * (1 - 2 * 0.45)).backward()
        adam.step()
    assert one["metrics"]["theta"] == pytest.approx(logit.sigmoid().item(), rel=1e-5)
    assert one["metrics"]["wrong_sign"] == 0


def test_jump_form_of_the_gamma_toy_is_not_the_sum_of_the_series(finished):
    summed, jump = (r["metrics"]["log_variance"] for r in Rows(finished / "quick").of("gamma"))
    assert jump > summed + 0.2


def test_interrupted_run_goes_on_to_the_same_row(finished, tmp_path, monkeypatch):
    whole = Rows(finished / "quick").find(Run("toy", TOY))

    def interrupt(self, trainer: pl.Trainer, *rest):
        if trainer.global_step == 47:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(KeepCurves, "on_train_batch_end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            Toy().run(TOY, tmp_path, "data")
    assert (tmp_path / "last.ckpt").exists()
    begun = []
    monkeypatch.setattr(KeepCurves, "on_train_start", lambda self, trainer, module: begun.append(trainer.global_step))
    outcome = Toy().run(TOY, tmp_path, "data")
    assert begun == [40]
    assert outcome.metrics == whole["metrics"]
    assert outcome.curves.keys() == whole["curves"].keys()
    for name, curve in whole["curves"].items():
        assert outcome.curves[name]["step"] == curve["step"]
        assert [float(f"{value:.6g}") for value in outcome.curves[name]["value"]] == curve["value"]


def test_run_that_fails_is_a_row(tmp_path, monkeypatch):
    def fail(self, trainer, *rest):
        if trainer.global_step == 30:
            raise FloatingPointError("loss is nan\nand more")

    monkeypatch.setattr(KeepCurves, "on_train_batch_end", fail)
    command("toy", "--steps", 100, "--lr", 0.01, "--estimator", "REBAR", "--quick", "--runs", tmp_path)
    (one,) = Rows(tmp_path / "quick").of("toy")
    assert one["failed"] == "loss is nan"
    assert one["metrics"] == {}
    assert one["seconds"] > 0
    assert 1 <= len(one["curves"]["loss"]["value"]) < 100
    report = (tmp_path / "quick" / "RESULTS.md").read_text()
    assert f"- failed: `{one['command']}`: loss is nan" in report


def test_missing_data_are_said_in_a_line(tmp_path):
    words = ["discrete", "--model", "bernoulli_linear", "--data", "MNIST", "--estimator", "REBAR", "--samples", 1]
    with pytest.raises(SystemExit, match="Here the folder is given by --data-root"):
        command(*words, "--seed", 0, "--data-root", tmp_path, "--runs", tmp_path, "--results", tmp_path)
    assert not (tmp_path / "discrete.jsonl").exists()


def test_run_of_another_process_is_left_to_it(tmp_path, capsys):
    run = Run("toy", TOY)
    folder = tmp_path / "quick" / "toy" / run.label.replace(" ", ",")
    folder.mkdir(parents=True)
    words = ["toy", "--steps", 100, "--lr", 0.01, "--estimator", "REBAR", "--quick", "--runs", tmp_path]
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        command(*words)
    assert Rows(tmp_path / "quick").of("toy") == []
    assert capsys.readouterr().err.count("0 of 1 runs done") == 2


@pytest.mark.parametrize("damage", ['{"experiment": "toy", "settings":', '{"experiment": "toy"}', "[]"])
def test_damaged_row_is_refused_with_its_place(tmp_path, damage):
    path = tmp_path / "toy.jsonl"
    path.write_text(json.dumps(row(seed=0)) + f"\n{damage}\n")
    with pytest.raises(ValueError, match=r"toy\.jsonl, line 2, is no row .* Delete the line"):
        Rows(tmp_path).of("toy")


@pytest.mark.parametrize("name", ["toy", "gamma", "regression", "divergence"])
def test_report_of_nothing(name, tmp_path):
    assert EXPERIMENTS[name].report([]) == []
    assert {finding.state for claim in EXPERIMENTS[name].claims for finding in claim.judge([])} <= {"not run"}
    assert all(answer(claim, list(claim.judge([]))) == ("Not run", "") for claim in EXPERIMENTS[name].claims)
    assert EXPERIMENTS[name].figures([], tmp_path) == []


def test_claims_are_answered_by_the_rows():
    def theta(value):
        return {"theta": value, "excess_loss": value / 500, "log_variance": -4.0, "wrong_sign": 0.5}

    found = {"REINFORCE": (0.3, 0.4), "Concrete": (0.5, 0.4), "REBAR": (0.02, 0.03), "RELAX": (0.05, 0.06)}
    rows = [
        {
            "settings": {"target": 0.499, "steps": 10, "lr": 0.01, "estimator": name, "seed": seed},
            "metrics": theta(value),
            "curves": {"loss": {"step": [0, 9], "value": [0.499**2 + value / 250, 0.499**2]}},
        }
        for name, values in found.items()
        for seed, value in enumerate(values)
    ]
    unable, faster, struggle, exact = (answer(c, list(c.judge(rows))) for c in EXPERIMENTS["toy"].claims[:4])
    assert unable.short == "Yes in 2 of 3 comparisons"
    assert unable.evidence.startswith("REINFORCE finds it in 0 of 2 seeds; Concrete finds it in 0")
    assert unable.evidence.endswith(
        "REBAR finds it in 2 of 2 seeds. Of 3 comparisons, the claim holds in 2, does not hold in 1."
    )
    assert faster == ("No", "Excess loss over training: REBAR 5e-05 ± 1.4e-05, REINFORCE 0.0007 ± 0.00014.")
    assert struggle.short == "No"
    assert struggle.evidence.startswith("t = 0.499: excess loss over training: RELAX 0.00011")
    assert "REBAR is below RELAX" in struggle.evidence
    assert exact == ("Not run", "")


def test_extreme_knows_ties_and_gaps():
    low, near, high = Seeds((1.0, 1.2)), Seeds((1.1, 1.3)), Seeds((3.0, 3.1))
    assert extreme({"a": low, "b": high}, ["a"]) == ("holds", "a 1.1 ± 0.14, of the others best b 3.05 ± 0.071")
    state, text = extreme({"a": low, "b": near, "c": high}, ["a"])
    assert (state, text) == ("tie", "a 1.1 ± 0.14, of the others best b 1.2 ± 0.14 (a ties with b)")
    state, text = extreme({"a": high, "b": near}, ["a"])
    assert (state, text) == ("does not hold", "a 3.05 ± 0.071, of the others best b 1.2 ± 0.14 (b is below a)")
    assert extreme({"a": high, "b": near}, ["a"], highest=True)[0] == "holds"
    assert extreme({"a": low, "b": None}, ["a"]) == ("not run", "")


def test_answers_count_findings():
    states = ("holds", "does not hold", "tie", "smaller than claimed", "not run")
    findings = [
        Finding(name, "a against b", state, name, one_seed=name == "x", differences={"loss": gap})
        for name, state, gap in zip("xyzwv", states, (1.0, -2.0, 0.1, 0.5, 9.0), strict=True)
    ]
    claim = Claim("?", "a is above b.", None, lambda rows: findings)
    assert answer(claim, findings) == (
        "Yes in 1 of 4 comparisons",
        "a against b: loss -2.00 to +1.00. Of 4 comparisons, the claim holds in 1, is smaller than claimed in 1, is "
        "undecided (a tie) in 1, does not hold in 1. 1 of 4 comparisons rest on one seed.",
    )
    assert answer(claim, findings[1:3]).short == "No"
    assert answer(claim, findings[2:3]).short == "Undecided"
    assert answer(claim, findings[:1]).short == "Yes"
    denied = Claim("?", "It does not.", None, lambda rows: findings, denied=True)
    assert answer(denied, findings[:1]).short == "No"
    assert answer(denied, findings[:2]).short == "Yes in 1 of 2 comparisons"
    assert answer(claim, findings[4:]) == ("Not run", "")


def test_what_each_run_was_done_with_is_printed(finished, capsys):
    command("runs", "toy", "divergence", "--quick", "--runs", finished)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split("\t") == ["seconds", "commit", "date", "threads", "torch", "processor", "command"]
    rows = [row for name in ("toy", "divergence") for row in Rows(finished / "quick").of(name)]
    for line, one in zip(lines, rows, strict=True):
        seconds, commit, *_, words = line.split("\t")
        assert (float(seconds), commit, words) == (one["seconds"], one["commit"], one["command"])


def test_summaries_of_rows():
    rows = [row(1.0, d=10, seed=0), row(2.0, d=1, seed=0), row(4.0, d=10, seed=1), {**row(9.0, d=1), "failed": "nan"}]
    assert list(grouped(rows, "d")) == [(1,), (10,)]
    assert seeds(grouped(rows, "d")[(10,)], "loss") == Seeds((1.0, 4.0))
    assert stated(seeds(grouped(rows, "d")[(1,)], "loss")) == "2"
    assert seeds(rows, "elbo") is None
    assert stated(None) == "–"
    curve = {"step": list(range(20)), "value": [0.0] * 18 + [math.log(2.0), math.log(4.0)]}
    assert late_log_mean(curve) == pytest.approx(math.log(3.0))
    assert late_mean(curve) == pytest.approx(math.log(8.0) / 2)


def test_figures_are_the_same_bytes_for_the_same_curves(tmp_path):
    curves = [{"step": [1, 2, 3], "value": [1.0, 2.0, 5.0]}, {"step": [2, 3], "value": [4.0, 5.0]}]
    assert band(curves) == ([2, 3], [3.0, 5.0], [pytest.approx(2**0.5), 0.0])
    panels = [Panel("t", "step", "loss (nats)", {"REBAR": curves, "none": []}, log_y=True)] * 3
    one, other = (draw(panels, tmp_path / f"{name}.png", columns=2) for name in "ab")
    assert one.read_bytes() == other.read_bytes()
