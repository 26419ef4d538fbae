"""The toy: its closed forms against enumeration, and figures that leave training as it is."""

import math

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributions import Normal

from lightning_estimators.baselines import MovingAverage
from lightning_estimators.datamodules import Toy
from lightning_estimators.estimators import (
    REBAR,
    REINFORCE,
    RELAX,
    Concrete,
    Enumeration,
    RelaxedREBAR,
    StochasticBackprop,
)
from lightning_estimators.modules import ToyModel
from lightning_estimators.networks import Surrogate

KEYS = {"loss", "theta", "gradient", "log_variance", "bias", "bias_z", "angle"}


def build(estimator, **settings):
    torch.manual_seed(0)
    model = ToyModel(estimator, **settings)
    with torch.no_grad():
        model.logits.copy_(torch.linspace(-0.4, 1.0, len(model.logits)))
    return model


def fit(model, tmp_path, *, logger=False, **settings):
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        **settings,
    )
    trainer.fit(model, datamodule=Toy(batch_size=2, num_batches=10))
    return model


@pytest.mark.parametrize("num_latents", [1, 3])
def test_closed_forms_are_those_of_enumeration(num_latents):
    model = build(Enumeration(), target=0.3, num_latents=num_latents)
    loss = model.loss(torch.zeros(1, 1)).squeeze()
    (gradient,) = torch.autograd.grad(loss, model.logits)
    torch.testing.assert_close(model.exact_loss(), loss.detach())
    torch.testing.assert_close(model.exact_gradient(), gradient)


def test_theta_starts_at_one_half():
    model = ToyModel(REBAR(), num_latents=2)
    assert model.logits.tolist() == [0.0, 0.0]
    assert model.target == 0.499
    assert float(model.exact_gradient()[0]) == pytest.approx(0.25 * 0.002 / 2, rel=1e-4)


@pytest.mark.parametrize(
    ("estimator", "unbiased"),
    [(REINFORCE(), True), (REBAR(), True), (RELAX(Surrogate([5])), True), (Concrete(), False)],
    ids=lambda case: type(case).__name__,
)
def test_bias_is_seen_where_there_is_one(estimator, unbiased):
    model = build(estimator, num_latents=2, num_draws=20_000, target=0.2)
    torch.manual_seed(1)
    statistics = model.gradient_statistics()
    assert set(statistics) == KEYS - {"loss", "theta"}
    # The root mean square of two standard normal variables exceeds 4 with probability 1e-7.
    assert (float(statistics["bias_z"]) < 4) == unbiased


def test_statistics_of_the_score_function_are_those_of_its_formula():
    model = build(REINFORCE(), num_draws=100_000)
    t, p = 0.499, float(torch.sigmoid(model.logits.detach()))
    torch.manual_seed(1)
    statistics = {name: float(value) for name, value in model.gradient_statistics().items()}
    draws = {(1 - t) ** 2 * (1 - p): p, t**2 * -p: 1 - p}  # f(b) (b - p): probability
    mean = sum(draw * probability for draw, probability in draws.items())
    variance = sum((draw - mean) ** 2 * probability for draw, probability in draws.items())
    assert statistics["gradient"] == pytest.approx(mean, rel=1e-4)
    assert statistics["log_variance"] == pytest.approx(math.log(variance), abs=0.02)
    # The exact gradient is positive, so a draw points the wrong way when b = 0.
    assert statistics["angle"] == pytest.approx(180 * (1 - p), abs=1.5)
    assert abs(statistics["bias"]) < 5 * math.sqrt(variance / 100_000)


@pytest.mark.parametrize("estimator", [Enumeration(), StochasticBackprop()], ids=lambda e: type(e).__name__)
def test_exact_estimators_have_no_variance_bias_or_angle(estimator):
    statistics = build(estimator, num_latents=3, target=0.3).gradient_statistics()
    assert float(statistics["log_variance"]) < -30
    assert float(statistics["angle"]) < 0.1
    assert abs(float(statistics["bias"])) < 1e-7
    assert math.isfinite(float(statistics["bias_z"]))


@pytest.mark.parametrize(
    "make",
    [REBAR, lambda: RELAX(Surrogate([5])), lambda: REINFORCE(MovingAverage())],
    ids=["REBAR", "RELAX", "average"],
)
def test_being_watched_changes_nothing(make, tmp_path):
    states = []
    for every, logger in ((1, TensorBoardLogger(tmp_path)), (10**6, False)):
        pl.seed_everything(1)
        model = fit(
            build(make(), num_draws=10, figure_every_n_epochs=1),
            tmp_path,
            logger=logger,
            max_epochs=2,
            log_every_n_steps=every,
        )
        states.append(model.state_dict())
    watched, alone = states
    assert watched.keys() == alone.keys()
    for name, value in watched.items():
        assert torch.equal(value, alone[name]), name


def test_every_documented_figure_is_logged(tmp_path):
    fit(
        build(RelaxedREBAR(Surrogate([5])), num_draws=10, figure_every_n_epochs=2),
        tmp_path,
        logger=TensorBoardLogger(tmp_path, name="", version=""),
        max_epochs=4,
        log_every_n_steps=5,
    )
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert {f"toy/{name}" for name in KEYS} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("toy/theta")] == [4, 9, 14, 19, 24, 29, 34, 39]
    assert [event.step for event in events.Images("toy/relaxation")] == [10, 30]
    for name in KEYS:
        assert f"`toy/{name}`" in ToyModel.__doc__


def test_relaxation_is_the_control_variate_over_the_noise():
    model = build(REBAR(temperature=0.5, eta=2.0), target=0.3)
    u, relaxed, cost = model.relaxation_curve(points=50)
    z = model.logits.detach() + torch.logit(u)
    torch.testing.assert_close(relaxed, 2.0 * (torch.sigmoid(z / 0.5) - 0.3).square())
    torch.testing.assert_close(cost, torch.where(u > 1 - torch.sigmoid(model.logits.detach()), 0.49, 0.09))
    lines = model.relaxation_figure().axes[0].lines
    for line, values in zip(lines, model.relaxation_curve()[1:], strict=True):
        torch.testing.assert_close(torch.as_tensor(line.get_ydata()), values.float())


def test_estimators_without_relaxation_have_no_figure():
    assert build(REINFORCE()).relaxation_figure() is None


def test_training_moves_every_latent_to_the_better_outcome(tmp_path):
    torch.manual_seed(0)
    model = ToyModel(StochasticBackprop(), target=0.3, num_latents=2, optimizer=lambda p: torch.optim.Adam(p, lr=0.2))
    fit(model, tmp_path, max_epochs=5)
    assert (torch.sigmoid(model.logits) < 0.05).all()


class NormalOnly(REINFORCE):
    families = (Normal,)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ToyModel(NormalOnly()), TypeError, "supports Normal; got Bernoulli"),
        (lambda: ToyModel(REBAR(), num_latents=0), ValueError, "num_latents of at least 1"),
        (lambda: ToyModel(REBAR(), num_draws=1), ValueError, "num_draws of at least 2"),
        (lambda: ToyModel(REBAR(), figure_every_n_epochs=-1), ValueError, "figure_every_n_epochs"),
    ],
)
def test_what_cannot_work_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
