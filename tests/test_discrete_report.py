"""RESULTS.md's part on discrete latents says what the rows say, and nothing that was not run."""

import math

import pytest

from benchmarks.__main__ import main
from benchmarks.experiments.discrete import Discrete
from benchmarks.experiments.discrete_claims import CLAIMS, Verdict, answer
from benchmarks.experiments.discrete_tables import lines_of, tables_of
from benchmarks.published import PUBLISHED, Protocol, differences
from benchmarks.rows import Rows
from benchmarks.seeds import Difference, Seeds

RELAXED, WORSE, VARIANCE, SAMPLES_BOUND, SAMPLES_VARIANCE, LIKELIHOOD, LEARNING_RATE = CLAIMS


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


def states(claim, rows):
    return [verdict.state for verdict in claim.judge(tables_of(rows))]


def lines(claim, rows):
    return [verdict.line for verdict in claim.judge(tables_of(rows))]


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
    assert "a tie, apart by 0.20 (one seed)" in str(Difference(Seeds((-99.8,)), one))


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
    assert str(difference) == "1.00 against 0.05, higher by 0.95 (one seed)"


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
    (verdict,) = WORSE.judge(tables_of([row("REBAR"), row("RELAX", value)]))
    assert verdict.state == state
    assert verdict.one_seed
    assert f"**{state} (one seed)**" in verdict.line


@pytest.mark.parametrize(
    ("adam", "state", "size"),
    [
        (-8.0, "holds", "about"),
        (-9.0, "holds", "more than"),
        (-7.0, "less than stated", "less than"),
        (-5.0, "does not hold", "opposite to"),
    ],
)
def test_variance_is_judged_by_the_size_the_paper_states(adam, state, size):
    rows = [row("REBAR"), row("StochasticBackprop", adam=adam, variance=-11.0)]
    verdicts = list(VARIANCE.judge(tables_of(rows)))
    assert [verdict.state for verdict in verdicts] == [state, "not yet run", "not yet run"]
    assert f"{size} the paper's -2.00" in verdicts[0].text
    assert "fresh log-variance -11.00 against -8.00, lower by 3.00" in verdicts[0].text


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
        ("bernoulli_linear", "REBAR", 1.0, "less than stated"),
        ("bernoulli_linear", "REBAR", -3.27, "does not hold"),
        ("categorical_linear", "Concrete", 5.98, "holds"),
        ("categorical_linear", "Concrete", 1.0, "less than stated"),
    ],
)
def test_likelihoods_are_judged_by_the_second_papers_tables(model, other, gain, state):
    rows = [row(other, model=model), row("StochasticBackprop", -110.0 + gain, model=model)]
    line = lines(LIKELIHOOD, rows)[0]
    assert f"**{state} (one seed)**" in line
    assert "the paper's protocol differs: epochs 500 (here 50)" in line


def test_learning_rates_are_compared_at_equal_epochs():
    low, high = row("REBAR", -114.0), row("REBAR", -111.0, lr=1e-3)
    exact = row("StochasticBackprop", -112.0)
    first = lines(LEARNING_RATE, [low, high, exact])[0]
    assert "**holds (one seed)**: test bound at 0.001 against 0.0001: -111.00 against -114.00, higher by 3.00" in first
    assert "against it at 0.0001: test bound -112.00 against -114.00, higher by 2.00" in first
    assert "**does not hold" in lines(LEARNING_RATE, [low, row("REBAR", -115.0, lr=1e-3)])[0]
    assert not lines(LEARNING_RATE, [low, row("REBAR", -111.0, lr=1e-3, epochs=20)])
    missing = lines(LEARNING_RATE, [low, row("RELAX", -111.0, lr=1e-3)])
    assert [line.rpartition(": ")[2] for line in missing] == ["lr 0.001.", "lr 0.0001.", "lr 0.0001, lr 0.001."]


def test_claim_is_answered_in_a_sentence():
    def verdict(state, apart=0.0):
        return Verdict("here", state, "text", one_seed=apart == 2.0, apart={"bound": apart})

    missing = Verdict("here", "not yet run", "seed 0")
    assert answer([]) == answer([missing]) == "not yet run"
    assert answer([verdict("holds", 1.5), missing]) == "**yes**: holds in 1 of 1; bound differs by +1.50 to +1.50"
    mixed = [verdict("holds", 2.0), verdict("does not hold", -1.0), verdict("tie")]
    assert answer(mixed) == (
        "**in part**: holds in 1 of 3, does not hold in 1 of 3, tie in 1 of 3 (1 of one seed); "
        "bound differs by -1.00 to +2.00"
    )
    assert answer(mixed[1:]).startswith("**no**: does not hold in 1 of 2, tie in 1 of 2;")
    assert answer(mixed[2:]).startswith("**a tie**")


def test_missing_and_failed_rows_are_said():
    assert lines(RELAXED, [row("REBAR")])[0].endswith("**not yet run**: RelaxedREBAR.")
    rows = [row("REBAR"), row("RelaxedREBAR", failed="logits are not finite")]
    assert lines(RELAXED, rows)[0].endswith("**not yet run**: RelaxedREBAR (failed).")
    text = "\n".join(Discrete().report(rows))
    assert "- RelaxedREBAR, seed 0: **failed**: logits are not finite" in text
    assert "| RelaxedREBAR |" not in text
    assert "| RELAX |" not in text


def test_table_has_mean_and_deviation_over_seeds():
    rows = [*seeds("REBAR", -110.0, -112.0), row("REBAR", seed=2, failed="diverged"), row("RELAX", -113.0)]
    text = list(lines_of(tables_of(rows)[0]))
    assert (
        "| REBAR | 2 | -111.00 ± 1.41 | -111.00 ± 1.41 | -111.00 ± 1.41 | -8.00 ± 0.00 | -6.00 ± 0.00 | 2 min |" in text
    )
    assert "| RELAX | 1 | -113.00 | -113.00 | -113.00 | -8.00 | -6.00 | 2 min |" in text
    assert any("Budget: 50 epochs" in line and "1 thread of abacus" in line for line in text)


def test_papers_stand_beside_with_what_differs():
    text = "\n".join(lines_of(tables_of([row("REBAR", epochs=500)])[0]))
    assert "REBAR -114.14 ± 0.44, RELAX -114.55 ± 0.48, BSB (S = 1) -110.87 ± 0.20" in text
    assert "Nothing that it states differs. Not stated: Adam's β₂, binarization, prior." in text
    assert "Differs: epochs 960 (here 500), batch 24 (here 100), Adam's β₂ 0.99999 (here 0.999)." in text
    text = "\n".join(lines_of(tables_of([row("REBAR", epochs=100, data="Omniglot")])[0]))
    second = next(line for line in text.splitlines() if "Table 1" in line)
    assert "Differs: images the shared 28×28 file (here the original drawings, scaled to 28×28)." in second


def test_protocol_matches_only_where_nothing_differs():
    ours = Protocol(500.0, 1e-4, 100, 0.999, "static", "learned", None, 200)
    assert differences(ours, ours, "test_bound") == ([], [])
    fewer = Protocol(500.0, 1e-4, 100, 0.999, "static", "learned", None, 100)
    assert differences(fewer, ours, "test_bound") == (["samples of the bound 100 (here 200)"], [])
    assert differences(fewer, ours, "train_elbo") == ([], [])
    assert differences(Protocol(lr=1e-3), Protocol(lr=1e-4, batch=100), "train_elbo") == (
        ["learning rate 0.001 (here 0.0001)"],
        ["batch"],
    )


def test_published_figures_are_whole():
    assert len(PUBLISHED) == 6 * 5 + 2 + 6 * 5 + 4 * 4
    assert len({(p.source, p.named, p.model, p.data, p.metric) for p in PUBLISHED}) == len(PUBLISHED)


def test_report_from_no_rows():
    text = "\n".join(Discrete().report([]))
    assert text.count("Not yet run.") == len(CLAIMS)
    assert "Nothing has been run yet." in text
    assert "No row to judge by has been run yet." in text
    assert "**" not in text


def test_disagreements_are_those_of_the_rows():
    rows = [row("REBAR"), row("RelaxedREBAR", -109.0, variance=-9.0), row("RELAX", -111.0)]
    assert "- No row speaks against a claim of the papers." in Discrete().report(rows)
    rows[2]["metrics"]["train_elbo"] = -109.0
    text = Discrete().report(rows)
    assert "  - MNIST, bernoulli_linear, lr 0.0001, 50 epochs, RELAX against REBAR: does not hold (one seed)" in text
    assert "- No row speaks against a claim of the papers." not in text


def test_figures_are_drawn_over_epochs(tmp_path):
    rows = [*seeds("REBAR", -110.0, -112.0), row("REBAR", lr=1e-3), row("RELAX", epochs=20, failed="diverged")]
    table = tables_of(rows)[1]
    assert [curve["step"] for curve in table.curves(("REBAR", 1), "train_elbo")] == [[1.0, 50.0]] * 2
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
    assert "3 runs of" in text
