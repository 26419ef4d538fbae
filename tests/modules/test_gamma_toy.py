"""The gamma toys: closed forms against autograd and sampling, and estimators that reach the known minimum."""

import math

import lightning.pytorch as pl
import pytest
import torch

from lightning_estimators.callbacks import GradientVariance
from lightning_estimators.datamodules import Toy
from lightning_estimators.estimators import (
    LAX,
    REBAR,
    REINFORCE,
    GeneralizedReparameterization,
    Pathwise,
    StochasticBackprop,
)
from lightning_estimators.modules import GammaToyModel
from lightning_estimators.networks import Surrogate
from lightning_estimators.objectives import ExponentialCost, SquaredCost

from .tiny import Recorder, trainer

PROBLEMS = ["squares", "exponentials"]
KEYS = {
    "loss", "minimum", "mean", "minimiser", "deviation", "gradient", "log_variance", "bias", "bias_z", "angle"
}  # fmt: skip
ESTIMATORS = {
    "StochasticBackprop": StochasticBackprop,
    "Pathwise": Pathwise,
    "G-REP": GeneralizedReparameterization,
    "REINFORCE": REINFORCE,
    "LAX": lambda: LAX(Surrogate([5])),
}


def build(estimator=None, **settings):
    """A toy of which every variable is elsewhere."""
    model = GammaToyModel(estimator or StochasticBackprop(), **settings)
    with torch.no_grad():
        model.log_shape.copy_(torch.linspace(-0.4, 1.0, len(model.log_shape)))
        model.log_scale.copy_(torch.linspace(0.5, -0.7, len(model.log_scale)))
    return model


@pytest.mark.parametrize("problem", PROBLEMS)
def test_closed_forms_are_those_of_the_paper(problem):
    model = build(problem=problem, target=0.3, num_latents=3).double()
    log_k, log_mu = (p.detach().clone().requires_grad_() for p in model.free_parameters())
    k, mu = log_k.exp(), log_mu.exp()
    if problem == "squares":  # E z² = k (k + 1) μ²
        loss = (k * (k + 1) * mu**2 - 2 * 0.3 * k * mu + 0.3**2).sum()
    else:
        loss = ((1 + 0.3 * mu) ** -k).sum()
    torch.testing.assert_close(model.exact_loss(), loss.detach())
    torch.testing.assert_close(model.exact_gradient(), torch.cat(torch.autograd.grad(loss, [log_k, log_mu])))
    z = model.q(*model.free_parameters()).sample((200_000,))
    costs = model.cost()(z)
    assert abs(costs.mean() - loss) < 5 * costs.std() / math.sqrt(200_000)
    assert isinstance(model.cost(), SquaredCost if problem == "squares" else ExponentialCost)


def test_starts_where_it_is_told():
    model = GammaToyModel(Pathwise(), num_latents=3, shape=2.0, scale=0.25)
    k, mu = model.predict_step(torch.zeros(4, 1), 0)
    torch.testing.assert_close(k, torch.full((4, 3), 2.0))
    torch.testing.assert_close(mu, torch.full((4, 3), 0.25))
    assert model.target == 0.49


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimates_have_the_exact_mean(name, problem):
    model = build(ESTIMATORS[name](), problem=problem, num_latents=3, num_draws=50_000)
    torch.manual_seed(1)
    statistics = model.gradient_statistics()
    # The mean square of six standard normal variables exceeds 3² with probability 1e-9.
    assert float(statistics["bias_z"]) < 3
    assert float(statistics["gradient"]) == pytest.approx(float(model.exact_gradient().mean()))
    with torch.no_grad():  # the check can fail: it knows the gradient elsewhere to be another
        model.log_scale += 1
    moved = model.exact_gradient()
    model.log_scale.data -= 1
    model.exact_gradient = lambda: moved
    torch.manual_seed(1)
    assert float(model.gradient_statistics()["bias_z"]) > 3


def test_closed_form_varies_less_than_the_others():
    variances = {}
    for name, make in ESTIMATORS.items():
        torch.manual_seed(1)
        statistics = build(make(), num_latents=10, num_draws=20_000).gradient_statistics()
        variances[name] = float(statistics["log_variance"])
    assert min(variances, key=variances.get) == "StochasticBackprop"
    assert max(variances["StochasticBackprop"], variances["Pathwise"], variances["G-REP"]) < variances["REINFORCE"]


def minimise(estimator, steps, rows, lr, **settings):
    torch.manual_seed(0)
    model = GammaToyModel(estimator, **settings)
    optimizer = torch.optim.Adam(model.free_parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(torch.zeros(rows, 1)).mean().backward()
        optimizer.step()
    return {name: float(figure) for name, figure in model.figures().items()}


@pytest.mark.parametrize("num_latents", [1, 10, 100])
@pytest.mark.parametrize("name", ["StochasticBackprop", "Pathwise", "G-REP"])
def test_squares_shrink_to_the_point_mass_at_the_target(name, num_latents):
    rows = (
        max(100, 2 * num_latents) if name == "G-REP" else 20
    )  # its correction is weighted by the cost of all variables
    figures = minimise(ESTIMATORS[name](), 400, rows, 0.05, num_latents=num_latents)
    assert figures["loss"] / num_latents < 0.08  # 1.26 at the start; 0.24 / (k + 1) at the best scale for shape k
    assert figures["mean"] == pytest.approx(figures["minimiser"], abs=0.12)
    assert figures["deviation"] < 0.26  # 1 at the start


@pytest.mark.parametrize("num_latents", [1, 10, 100])
@pytest.mark.parametrize("name", ["StochasticBackprop", "Pathwise", "G-REP"])
def test_exponentials_vanish(name, num_latents):
    rows = 100 if name == "G-REP" else 20
    figures = minimise(ESTIMATORS[name](), 200, rows, 0.05, num_latents=num_latents, problem="exponentials")
    assert figures["loss"] / num_latents < 2e-3  # 0.67 at the start
    assert figures["minimiser"] == math.inf


@pytest.mark.parametrize("problem", PROBLEMS)
def test_logs_what_it_documents_and_variances_per_group(problem, tmp_path):
    logger = Recorder()
    run = trainer(
        tmp_path, logger=logger, max_epochs=1, log_every_n_steps=2, callbacks=[GradientVariance(num_samples=5)]
    )
    model = GammaToyModel(StochasticBackprop(), problem=problem, num_latents=3, num_draws=10)
    run.fit(model, datamodule=Toy(batch_size=2, num_batches=4))
    logged = set().union(*(metrics for _, metrics in logger.logged))
    assert {f"toy/{name}" for name in KEYS} | {"val/loss"} <= logged
    for group in ("log_shape", "log_scale", "logits/estimator"):
        assert f"gradient/{group}/log_variance" in logged
    for name in KEYS:
        assert f"`toy/{name}`" in GammaToyModel.__doc__
    (first, *_) = (metrics for _, metrics in logger.logged if "toy/minimum" in metrics)
    assert first["toy/minimum"] == 0
    assert first["toy/minimiser"] == (pytest.approx(0.49) if problem == "squares" else math.inf)
    (tested,) = run.test(model, datamodule=Toy(), verbose=False)
    assert tested["test/loss"] == pytest.approx(float(model.exact_loss()))


def test_being_watched_changes_nothing(tmp_path):
    states = []
    for every in (1, 10**6):
        pl.seed_everything(1)
        model = build(LAX(Surrogate([5])), num_latents=2, num_draws=10)
        run = trainer(tmp_path, logger=Recorder(), max_epochs=1, log_every_n_steps=every)
        run.fit(model, datamodule=Toy(batch_size=2, num_batches=5))
        states.append(model.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize(("shape", "scale"), [(1e-2, 1e-3), (1e4, 1e-4), (1e4, 1e3), (1e-2, 1e3)])
def test_extreme_variables_are_finite_in_float32(shape, scale, problem):
    for make in (StochasticBackprop, Pathwise, GeneralizedReparameterization):
        model = GammaToyModel(make(), problem=problem, num_latents=3, shape=shape, scale=scale, num_draws=100)
        figures = model.figures()
        assert all(math.isfinite(figure) for name, figure in figures.items() if name != "minimiser")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: GammaToyModel(REBAR()), TypeError, "got Gamma"),
        (lambda: GammaToyModel(Pathwise(), problem="cubes"), ValueError, "problem to be one of"),
        (lambda: GammaToyModel(Pathwise(), num_latents=0), ValueError, "num_latents of at least 1"),
        (lambda: GammaToyModel(Pathwise(), num_draws=1), ValueError, "num_draws of at least 2"),
        (lambda: GammaToyModel(Pathwise(), target=0.0), ValueError, "positive target"),
        (lambda: GammaToyModel(Pathwise(), shape=-1.0), ValueError, "positive shape"),
        (lambda: GammaToyModel(Pathwise(), scale=math.inf), ValueError, "positive scale"),
    ],
)
def test_what_cannot_work_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_uniform_noise_that_rounds_to_zero_does_no_harm(monkeypatch):
    """One float32 in 2^24 is exactly 0: a long run of many variables meets it."""
    monkeypatch.setattr(torch, "rand", torch.zeros)
    monkeypatch.setattr(torch, "rand_like", torch.zeros_like)
    for make in ESTIMATORS.values():
        assert GammaToyModel(make(), num_latents=3).sample_gradients(2).isfinite().all()
