"""RESULTS.md's part on discrete latents says what the rows say, and nothing that was not run."""

import json
import math

import pytest

from benchmarks.__main__ import EXPERIMENTS, main
from benchmarks.comparison import Difference, Seeds, answer
from benchmarks.discrete import Discrete
from benchmarks.discrete_report import PUBLISHED, lines_of, protocols, settings_of
from benchmarks.plan import Rows
from benchmarks.report import ORDER, write_report

RELAXED, WORSE, VARIANCE, SAMPLES_BOUND, LIKELIHOOD, SAMPLES_VARIANCE, LEARNING_RATE = Discrete.claims


def row(
    estimator, value=-110.0, *, variance=-8.0, adam=-6.0, seed=0, samples=1, failed=None, seconds=120.0, **settings
):
    """A row like those of a run: all bounds are `value`."""
    settings = {"model": "bernoulli_linear", "data": "MNIST", "lr": 1e-4, "epochs": 50} | settings
    settings |= {"estimator": estimator, "samples": samples, "seed": seed}
    metrics = {"train_elbo": value, "test_elbo": value, "test_bound": value}
    metrics |= {"log_variance_encoder": variance, "log_variance_encoder_adam": adam}
    steps = {"step": [500, 25_000], "value": [-150.0, value]}
    return {
        "experiment": "discrete",
        "settings": settings,
        "command": "python -m benchmarks discrete",
        "commit": "0",
        "environment": {"threads": 1, "processor": "abacus", "torch": "0"},
        "protocol": Discrete().protocol(settings),
        "seconds": seconds,
        "metrics": {} if failed else metrics,
        "curves": {} if failed else {"train_elbo": steps, "log_variance_encoder": steps},
    } | ({"failed": failed} if failed else {})


def seeds(estimator, *values, **others):
    return [row(estimator, value, seed=seed, **others) for seed, value in enumerate(values)]


def report(rows, folder):
    """The texts of RESULTS.md with these rows, and of the findings behind its answers."""
    (folder / "discrete.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    write_report(EXPERIMENTS, Rows(folder), folder / "RESULTS.md")
    return (folder / "RESULTS.md").read_text(), (folder / "findings.md").read_text()


def states(claim, rows):
    return [finding.state for finding in claim.judge(rows)]


def lines(claim, rows):
    return [f"{finding.state}{'*' * finding.one_seed}: {finding.text}" for finding in claim.judge(rows)]


def test_difference_is_a_tie_within_two_standard_errors():
    low, high = Seeds((0.0, 2.0)), Seeds((2.5, 4.5))
    difference = Difference(high, low)
    assert low.std == pytest.approx(math.sqrt(2))
    assert difference.error == pytest.approx(math.sqrt(2))  # sqrt(2 / 2 + 2 / 2)
    assert difference.sign == 0
    assert Difference(Seeds((2.9, 4.9)), low).sign == 1
    assert Difference(low, Seeds((2.9, 4.9))).sign == -1
    assert Difference(Seeds((-math.inf, -8.0)), low).sign == 0


def test_single_runs_must_differ_by_more_than_seeds_do():
    one = Seeds((-100.0,))
    assert [Difference(Seeds((value,)), one).sign for value in (-99.8, -100.2, -99.7, -100.3)] == [0, 0, 1, -1]
    assert str(Difference(Seeds((-99.8,)), one)) == "+0.20*"


def test_single_run_against_several_must_differ_by_more_than_these_do():
    several = Seeds((-1.0, 0.0, 1.0))
    least = 2 * math.sqrt(1 / 3 + 1)  # their deviation is 1
    for sign in (1, -1):
        assert Difference(Seeds((sign * (least + 0.01),)), several).sign == sign
        assert Difference(several, Seeds((sign * (least + 0.01),))).sign == -sign
        assert Difference(Seeds((sign * (least - 0.01),)), several).sign == 0
    assert Difference(Seeds((0.3,)), Seeds((0.0, 0.0))).sign == 1


def test_one_seed_has_no_standard_error():
    difference = Difference(Seeds((1.0,)), Seeds((0.0, 0.1)))
    assert difference.error is None
    assert difference.sign == 1
    assert str(difference) == "+0.95*"
    assert str(Difference(Seeds((1.0, 1.2)), Seeds((0.0, 0.2)))) == "+1.00 ± 0.14"
    assert str(Difference(Seeds((math.inf,)), Seeds((0.0,)))) == "not finite"


@pytest.mark.parametrize(
    ("bounds", "variance", "state"),
    [
        ((-109.0, -109.2), -9.0, "holds"),
        ((-111.0, -111.2), -9.0, "does not hold"),
        ((-109.0, -109.2), -7.0, "does not hold"),
        ((-105.0, -115.4), -9.0, "tie"),
    ],
)
def test_relaxed_rebar_must_win_in_bound_and_variance(bounds, variance, state):
    rows = seeds("REBAR", -110.0, -110.2) + seeds("RelaxedREBAR", *bounds, variance=variance)
    assert states(RELAXED, rows) == [state]


@pytest.mark.parametrize(("value", "state"), [(-111.0, "holds"), (-109.0, "does not hold"), (-110.0, "tie")])
def test_relax_against_rebar(value, state):
    (finding,) = WORSE.judge([row("REBAR"), row("RELAX", value)])
    assert finding.state == state
    assert finding.one_seed
    assert finding.text == f"training ELBO {value + 110:+.2f}*"


@pytest.mark.parametrize(
    ("adam", "state"),
    [(-8.0, "holds"), (-7.5, "holds"), (-9.0, "holds"), (-7.0, "smaller than claimed"), (-5.0, "does not hold")],
)
def test_variance_is_judged_by_the_size_the_paper_states(adam, state):
    rows = [row("REBAR"), row("StochasticBackprop", adam=adam, variance=-11.0)]
    findings = list(VARIANCE.judge(rows))
    assert [finding.state for finding in findings] == [state, "not run", "not run"]
    assert findings[0].text == f"log-variance (Adam) {adam + 6:+.2f}*, claimed -2.00; fresh -3.00*"


def test_variance_is_answered_as_a_factor():
    rows = [row("REBAR"), row("RELAX", adam=-5.0), row("RelaxedREBAR"), row("StochasticBackprop", adam=-8.0)]
    told = answer(VARIANCE, list(VARIANCE.judge(rows)))  # e² = 7.39, e³ = 20.1
    assert told == (
        "Yes",
        "Its variance is 7.39 to 20.1 times smaller, 7.39 to 7.39 times less than REBAR (2.0 to 3.0 nats of "
        "log-variance). 3 of 3 comparisons rest on one seed.",
    )


@pytest.mark.parametrize(("several", "state"), [(-110.0, "holds"), (-111.0, "holds"), (-109.0, "does not hold")])
def test_one_sample_hurts_if_several_reach_a_higher_bound(several, state):
    rows = [row("StochasticBackprop"), row("StochasticBackprop", several, samples=5)]
    assert states(SAMPLES_BOUND, rows) == [state]


@pytest.mark.parametrize(
    ("variance", "state"), [(-8 - math.log(10), "holds"), (-8.0, "does not hold"), (-math.inf, "tie")]
)
def test_variance_of_a_mean_falls_by_the_log_of_samples(variance, state):
    rows = [row("StochasticBackprop"), row("StochasticBackprop", samples=10, variance=variance)]
    assert states(SAMPLES_VARIANCE, rows) == [state]


@pytest.mark.parametrize(
    ("model", "other", "gain", "state"),
    [
        ("bernoulli_linear", "REBAR", 3.27, "holds"),
        ("bernoulli_linear", "REBAR", 1.0, "smaller than claimed"),
        ("bernoulli_linear", "REBAR", -3.27, "does not hold"),
        ("categorical_linear", "Concrete", 5.98, "holds"),
        ("categorical_linear", "Concrete", 1.0, "smaller than claimed"),
    ],
)
def test_likelihoods_are_judged_by_the_second_papers_tables(model, other, gain, state):
    rows = [row(other, model=model), row("StochasticBackprop", -110.0 + gain, model=model)]
    line = lines(LIKELIHOOD, rows)[0]
    claimed = {"REBAR": "+3.27", "Concrete": "+5.98"}[other]
    assert line == f"{state}*: test bound {gain:+.2f}*, claimed {claimed}"


def test_learning_rates_are_compared_at_equal_epochs():
    low, high = row("REBAR", -114.0), row("REBAR", -111.0, lr=1e-3)
    exact = row("StochasticBackprop", -112.0)
    first = lines(LEARNING_RATE, [low, high, exact])[0]
    assert first == "holds*: test bound +3.00*; StochasticBackprop (S = 1) is ahead by +2.00* at 0.0001"
    assert lines(LEARNING_RATE, [low, row("REBAR", -115.0, lr=1e-3)])[0].startswith("does not hold")
    assert not lines(LEARNING_RATE, [low, row("REBAR", -111.0, lr=1e-3, epochs=20)])
    missing = lines(LEARNING_RATE, [low, row("RELAX", -111.0, lr=1e-3)])
    assert [line.rpartition(": ")[2] for line in missing] == ["lr 0.001", "lr 0.0001", "lr 0.0001, lr 0.001"]


def test_claim_is_answered_in_a_sentence():
    rows = seeds("REBAR", -110.0, -110.2) + seeds("RelaxedREBAR", -109.0, -109.2, variance=-9.0)
    rows += [row("REBAR", lr=1e-3), row("RelaxedREBAR", -111.0, variance=-9.0, lr=1e-3), row("REBAR", data="Omniglot")]
    assert answer(RELAXED, list(RELAXED.judge(rows))) == (
        "Yes in 1 of 2 comparisons",
        "RelaxedREBAR against REBAR: training ELBO -1.00 to +1.00, log-variance -1.00 to -1.00. Of 2 comparisons, the "
        "claim holds in 1, does not hold in 1. 1 of 2 comparisons rest on one seed.",
    )


def test_missing_and_failed_rows_are_said(tmp_path):
    assert lines(RELAXED, [row("REBAR")]) == ["not run: RelaxedREBAR"]
    rows = [row("REBAR"), row("RelaxedREBAR", failed="logits are not finite")]
    assert lines(RELAXED, rows) == ["not run: RelaxedREBAR (failed)"]
    text, findings = report(rows, tmp_path)
    assert f"- failed: `{rows[1]['command']}`: logits are not finite" in text
    assert "2 runs, of which 1 failed." in text
    assert "| **not run**: RelaxedREBAR (failed) |" in findings
    assert "| RelaxedREBAR |" not in text
    assert "| RELAX |" not in text


def test_table_has_mean_and_deviation_over_seeds():
    rows = [*seeds("REBAR", -110.0, -112.0), row("REBAR", seed=2, failed="diverged"), row("RELAX", -113.0)]
    text = list(lines_of("bernoulli_linear", settings_of(rows)))
    place = "| MNIST, 0.0001, 50 |"
    assert (
        f"{place} REBAR | 2 | -111.00 ± 1.41 | -111.00 ± 1.41 | -111.00 ± 1.41 | -8.00 ± 0.00 | -6.00 ± 0.00 | 2 min |"
        in text
    )
    assert f"{place} RELAX | 1 | -113.00 | -113.00 | -113.00 | -8.00 | -6.00 | 2 min |" in text
    assert "Times are with 1 thread of abacus." in Discrete().report(rows)
    assert not any("not all made by one protocol" in line for line in text)
    rows[0]["protocol"] = rows[0]["protocol"] | {"batch": 50}
    assert any("not all made by one protocol" in line for line in lines_of("bernoulli_linear", settings_of(rows)))


def test_figures_and_protocols_of_the_papers_stand_beside():
    settings = settings_of([row("REBAR", epochs=500), row("REBAR", epochs=100, data="Omniglot")])
    text = "\n".join(lines_of("bernoulli_linear", settings))
    assert "Table 1: REBAR -114.14 ± 0.44, RELAX -114.55 ± 0.48, BSB (S = 1) -110.87 ± 0.20" in text
    assert "Figure 3: REBAR (Tucker et al., 2017) -111.60, REBAR -111.66, relaxed REBAR -111.22" in text
    text = protocols(settings)
    assert "| here | MNIST | 500 | 0.0001 | 100 | 0.999 | static | learned | 200 |" in text
    assert "| here | Omniglot | 100 | 0.0001 | 100 | 0.999 | static | learned | 200 |" in text
    assert "| Grathwohl et al. (2018) | MNIST | 960 | not stated | 24 | 0.99999 | static | learned | 100 |" in text
    assert sum("Echraibi et al. (2020)" in line for line in text) == 2
    widths = {line.count("|") for line in text if line}
    assert widths == {10}


def test_budgets_and_learning_rates_of_all_rows_are_in_the_protocols():
    rows = [row("REBAR"), row("REBAR", epochs=20, lr=1e-3)]
    assert "| here | MNIST | 20, 50 | 0.001, 0.0001 | 100 |" in "\n".join(protocols(settings_of(rows)[::-1]))


def test_published_figures_are_whole():
    assert len(PUBLISHED) == 6 * 5 + 2 + 6 * 5 + 4 * 4
    assert len({(p.source, p.named, p.model, p.data, p.metric) for p in PUBLISHED}) == len(PUBLISHED)


def test_report_from_no_rows(tmp_path):
    assert Discrete().report([]) == []
    text, _ = report([], tmp_path)
    assert text.count("| **Not run** |") == sum(len(EXPERIMENTS[name].claims) for name in ORDER)
    assert text.count("Nothing has been run yet.") == len(ORDER)
    assert "**Yes" not in text
    assert "**No**" not in text
    assert "- MNIST: one layer of 200 Bernoulli variables, linear; two layers" in text


def test_disagreements_are_those_of_the_rows(tmp_path):
    rows = [row("REBAR"), row("RelaxedREBAR", -109.0, variance=-9.0), row("RELAX", -111.0)]
    text, findings = report(rows, tmp_path)
    assert "| Is RELAX worse than REBAR on images? | **Yes** |" in text
    assert "| **does not hold**:" not in findings
    rows[2]["metrics"]["train_elbo"] = -109.0
    text, findings = report(rows, tmp_path)
    assert "| Is RELAX worse than REBAR on images? | **No** |" in text
    assert "| MNIST, bernoulli_linear, lr 0.0001, 50 epochs | **does not hold**: training ELBO +1.00* |" in findings


def test_experiments_without_rows_are_named(tmp_path):
    text, _ = report([row("REBAR"), row("REBAR", data="Omniglot", epochs=20)], tmp_path)
    assert "- MNIST: two layers of 200 Bernoulli variables, linear;" in text
    assert "- Omniglot: two layers of 200 Bernoulli variables, linear;" in text
    assert "Here: 20 to 50 epochs." in text
    assert "Here: 1." in text


def test_figures_are_drawn_over_epochs(tmp_path):
    rows = [*seeds("REBAR", -110.0, -112.0), row("REBAR", lr=1e-3), row("RELAX", epochs=20, failed="diverged")]
    setting = settings_of(rows)[1]
    assert [curve["step"] for curve in setting.curves("REBAR", "train_elbo")] == [[1.0, 50.0]] * 2
    files = Discrete().figures(rows, tmp_path)
    assert [file.name for file in files] == [
        "discrete-MNIST-bernoulli_linear-lr0.0001-50epochs.png",
        "discrete-MNIST-bernoulli_linear-lr0.001-50epochs.png",
    ]
    assert all(file.stat().st_size > 0 for file in files)


def test_what_the_plan_lacks_is_listed(tmp_path):
    line = "discrete --model bernoulli_linear --data MNIST --epochs 50 --samples 1 --seed 0 1 --estimator REBAR"
    plan = tmp_path / "plan.txt"
    plan.write_text(f"{line}\n{line} RELAX  # the first two again\n")
    Rows(tmp_path).add(row("REBAR", seconds=600.0))
    main(["report", str(plan), "--results", str(tmp_path), "--report", str(tmp_path / "RESULTS.md")])
    text = (tmp_path / "RESULTS.md").read_text()
    assert f"- `{line}`: 1 of 2 runs, expected 10 min: seed=1" in text
    assert f"- `{line} RELAX`: 2 of 4 runs, expected 20 min: estimator=RELAX seed=0; estimator=RELAX seed=1" in text
    assert "Of the plan, `benchmarks/plan.txt`, 3 runs are left (30 min, judged by similar runs):" in text
