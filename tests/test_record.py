"""The table of record: what it measures is right where it is known, and a quick run makes rows and the page."""

import math

import pytest
import torch
from torch.distributions import Bernoulli

from benchmarks.__main__ import main
from benchmarks.experiment import Run
from benchmarks.plan import Rows
from benchmarks.record import DATA_NOISE, ESTIMATORS, Record
from benchmarks.record_measure import Reference, data_noise, fit, square_of_mean, statistics
from benchmarks.record_model import Frozen, Spot, measured_batch, training_batches
from benchmarks.record_report import missing, tables
from lightning_estimators.estimators import REBAR, REINFORCE, Concrete, Enumeration, StochasticBackprop

SPOT = Spot("bernoulli_nonlinear", "Digits", 0, 2, quick=True)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    made = Frozen(SPOT, tmp_path_factory.mktemp("trajectory"), SPOT.dataset("data"))
    made.model(REINFORCE())
    return made


def gradients(model, batch):
    """Return the exact gradients, by an enumeration of all latents."""
    outputs = []
    handle = model.encoder[0].register_forward_hook(lambda module, arguments, output: outputs.append(output))
    loss = model.loss(batch)
    handle.remove()
    parameters = list(model.encoder.parameters())
    logits, *of_encoder = torch.autograd.grad(loss.mean(), [outputs[0], *parameters])
    return len(batch) * logits.flatten(), torch.cat([g.flatten() for g in of_encoder]), outputs[0].detach()


def test_variance_square_and_bias_are_those_of_an_enumeration(frozen, tmp_path):
    """The exact rule, whose variance is a sum over the 64 latents, and Concrete, whose bias is known to be there."""
    batch, reference = measured_batch(frozen), Reference(tmp_path)
    exact_logits, exact_encoder, logits = gradients(frozen.model(Enumeration()), batch)
    reference.add(
        "exact",
        {n: g.expand(10, -1) for n, g in (("logits", exact_logits), ("encoder", exact_encoder))},
        {"logits": 1e-9, "encoder": 1e-9},
    )
    found = statistics(frozen.model(StochasticBackprop()), batch, 200, reference, "StochasticBackprop")
    # The rule's term of coordinate i is p(1 - p)(f(b with b_i = 1) - f(b with b_i = 0)); b takes 64 values.
    model = frozen.model(StochasticBackprop())
    points = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6)
    with torch.no_grad():
        pixels = batch.flatten(1)
        cost = model._pixel_cost(pixels, model.decoder[0](points.unsqueeze(1)))  # (64, batch)
    weight = Bernoulli(logits=logits).log_prob(points.unsqueeze(1)).sum(-1).exp()
    p, powers = logits.sigmoid(), 2 ** torch.arange(5, -1, -1)
    index = (points @ powers.float()).long()
    total = torch.zeros(())
    for i in range(6):
        up, down = (index | powers[i]), (index & ~powers[i])
        term = (p * (1 - p))[:, i] * (cost[up] - cost[down])
        mean = (weight * term).sum(0)
        total = total + (weight * (term - mean).square()).sum()
    assert found["variance_logits"] == pytest.approx(float(total) / len(batch), rel=0.1)
    assert found["square_logits"] == pytest.approx(float(exact_logits.square().sum()) / len(batch), rel=0.02)
    assert found["square_encoder"] == pytest.approx(float(exact_encoder.square().sum()), rel=0.05)
    assert found["unbiased"] == 1
    for name in ("logits", "encoder"):
        assert abs(found[f"bias_{name}"]) < 4 * found[f"bias_{name}_error"]
    biased = statistics(frozen.model(Concrete(temperature=5.0)), batch, 200, reference, "Concrete")
    assert biased["unbiased"] == 0
    assert biased["bias_logits"] > 10 * biased["bias_logits_error"]
    assert (biased["evaluations"], biased["gradients"]) == (1, 1)
    assert {path.stem for path in tmp_path.glob("*.pt")} == {"exact", "StochasticBackprop"}


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_square_of_mean_subtracts_the_noise_and_knows_its_error(mean):
    torch.manual_seed(0)
    drawn = [square_of_mean(mean + 3.0 * torch.randn(10, 50)) for _ in range(600)]
    estimates, errors = torch.tensor(drawn, dtype=torch.float64).T
    assert abs(estimates.mean() - 50 * mean**2) < 4 * estimates.std() / 600**0.5
    ratio = errors.square().mean().sqrt() / estimates.std()
    assert 0.85 < ratio < (1.15 if mean else 1.4)  # without a mean, a covariance of 0 is estimated by a positive number


def test_noise_of_the_data_is_that_between_batches(frozen):
    found = data_noise(frozen.model(StochasticBackprop()), training_batches(frozen), 12)
    model, batches = frozen.model(Enumeration()), training_batches(frozen)
    exact = torch.stack([gradients(model, next(batches))[1] for _ in range(12)])
    assert found["variance_encoder"] == pytest.approx(float(exact.var(0).sum()), rel=0.05)
    assert 0 < found["variance_encoder_error"] < found["variance_encoder"]


def test_fitting_changes_what_an_estimator_learns_and_nothing_else(frozen):
    model = frozen.model(REBAR())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert fit(model, training_batches(frozen), 3) == 3
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"estimators.0.log_temperature", "estimators.0.eta"}
    assert fit(frozen.model(StochasticBackprop()), training_batches(frozen), 3) == 0


def test_trajectory_goes_on_from_an_earlier_stage_as_if_it_had_not_stopped(frozen, tmp_path):
    later = SPOT._replace(stage=5)
    (frozen.folder / "last.ckpt").touch()  # as a run leaves it that was terminated
    resumed = Frozen(later, frozen.folder, frozen.data).model(REINFORCE()).state_dict()
    whole = Frozen(later, tmp_path, frozen.data).model(REINFORCE()).state_dict()
    first = frozen.model(REINFORCE()).state_dict()
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)
    assert not torch.equal(first["encoder.0.first.weight"], whole["encoder.0.first.weight"])


def test_odd_numbers_of_draws_are_refused(frozen, tmp_path):
    with pytest.raises(ValueError, match="multiple of 10"):
        statistics(frozen.model(REINFORCE()), measured_batch(frozen), 25, Reference(tmp_path), "REINFORCE")


def test_plan_leaves_out_what_an_estimator_cannot_do():
    record = Record()
    runs = record.plan({"seed": [0], "stage": [1000]}, quick=False)
    assert {run.settings["data"] for run in runs if run.settings["model"] == "bernoulli_linear"} == {"MNIST"}
    taken = {}
    for run in runs:
        taken.setdefault(run.settings["estimator"], set()).add(run.settings["model"].partition("_")[0])
    assert taken["ARMS-4"] == {"bernoulli"}
    assert taken["CARMS-4"] == {"categorical"}
    assert taken["REBAR"] == taken[DATA_NOISE] == {"bernoulli", "categorical"}
    assert taken.keys() == {*ESTIMATORS, DATA_NOISE}


def test_quick_run_makes_rows_and_the_page(tmp_path, capsys):
    threads = torch.get_num_threads()
    words = [
        "--quick",
        "--model",
        "bernoulli_nonlinear",
        "--estimator",
        "StochasticBackprop",
        "Concrete-0.5",
        DATA_NOISE,
    ]
    try:
        main(["record", *words, "--runs", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    rows = Rows(tmp_path / "quick").of("record")
    assert len(rows) == 3
    assert all(math.isfinite(value) for row in rows for value in row["metrics"].values())
    assert not list((tmp_path / "quick" / "record").glob("model*/*.ckpt"))
    page = (tmp_path / "quick" / "record.md").read_text()
    assert "| StochasticBackprop | 8 / 0 |" in page
    assert "| Concrete-0.5 † | 1 / 1 |" in page
    assert "*Other batches*, encoder: log-variance -" in page
    figure = tmp_path / "quick" / "figures" / "record-Digits-bernoulli_nonlinear.png"
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert "Matplotlib" not in capsys.readouterr().err


def row(seed, estimator="REBAR", **metrics):
    settings = {"model": "bernoulli_linear", "data": "MNIST", "seed": seed, "stage": 1000, "estimator": estimator}
    settings |= {"draws": 100, "fit": 300}
    base = {"fit": 300, "unbiased": 1.0, "evaluations": 3.0, "gradients": 2.0, "time": math.e, "memory_mib": 5.0}
    for name in ("logits", "encoder"):
        base |= {
            f"variance_{name}": math.exp(2.0),
            f"variance_{name}_error": 0.1 * math.exp(2.0),
            f"square_{name}": 4.0,
        }
    return {"experiment": "record", "settings": settings, "metrics": base | metrics}


def test_table_states_work_on_both_axes_and_means_over_seeds():
    (one,) = [line for line in tables([row(0)]) if line.startswith("| REBAR")]
    assert one == "| REBAR | 3 / 2 | 2.72 | 5 | 2.00 ± 0.10 | 3.95 | 3.00 | 2.00 ± 0.10 | 3.95 | 3.00 | – | – |"
    bias = {"bias_logits": 0.02, "bias_logits_error": 0.03}
    two = [
        row(0, **bias),
        row(1, variance_logits=math.exp(4.0), **bias | {"bias_logits": 0.04, "bias_logits_error": 0.04}),
    ]
    (both,) = [line for line in tables(two) if line.startswith("| REBAR")]
    assert both.split(" | ")[4] == "3.00 ± 1.41"
    assert both.split(" | ")[10] == "0.030 ± 0.025"


def test_page_says_what_is_missing():
    record, rows = Record(), [row(0)]
    planned = {"model": ["bernoulli_linear"], "seed": [0, 1], "stage": [1000], "estimator": ["REBAR", "RELAX"]}
    done = {Run("record", one["settings"]).key for one in rows}
    runs = [run for run in record.plan(planned, quick=False) if run.key not in done]
    assert list(missing(runs, rows)) == [
        "- 200 Bernoulli latents, linear, MNIST, 1,000 steps, seed 0: RELAX.",
        "- 200 Bernoulli latents, linear, MNIST, 1,000 steps: seeds 1 as a whole.",
    ]
    assert {run.settings["estimator"] for run in record.missing([])} == {*ESTIMATORS, DATA_NOISE}
