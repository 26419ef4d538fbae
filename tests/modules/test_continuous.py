"""The continuous latent model against its formulas, against quadrature, and estimators against one another."""

import copy
import math

import lightning.pytorch as pl
import pytest
import torch
from torch.distributions import Bernoulli, Beta, Dirichlet, Gamma, Independent, Laplace, Normal, kl_divergence
from torch.utils.data import DataLoader

from lightning_estimators.callbacks import GradientVariance
from lightning_estimators.distributions import sample
from lightning_estimators.estimators import (
    LAX,
    REBAR,
    REINFORCE,
    GeneralizedReparameterization,
    GradientEstimator,
    Pathwise,
    StochasticBackprop,
)
from lightning_estimators.estimators.base import Estimate
from lightning_estimators.modules import ContinuousLatentModel
from lightning_estimators.modules.families import LATENT_FAMILIES, log_densities
from lightning_estimators.networks import Surrogate
from lightning_estimators.objectives import BernoulliLinear, CallableObjective, FirstLayerLinear, GaussianLinear, Sum

# A figure whose true deviation is zero exceeds this many standard errors with probability 6e-7.
Z_BOUND = 5.0
SHAPE = (1, 2, 2)
FAMILY_NAMES = ["normal", "laplace", "gamma", "beta", "dirichlet"]
LAYERS = {name: {"latent": name, "num_latents": [2], "num_categories": 3} for name in FAMILY_NAMES}
NESTED = {
    "gamma, normal": {"latent": ["gamma", "normal"], "num_latents": [2, 2]},
    "normal, gamma": {"latent": ["normal", "gamma"], "num_latents": [2, 2]},
    "laplace, dirichlet": {"latent": ["laplace", "dirichlet"], "num_latents": [2, 1], "num_categories": 3},
    "dirichlet, beta": {"latent": ["dirichlet", "beta"], "num_latents": [1, 2], "num_categories": 3},
}


def build(estimator, *, seed=0, **settings):
    """A small model with weights that are far from their start, in float64."""
    model = ContinuousLatentModel(estimator, SHAPE, **{"data_mean": [0.3, 0.5, 0.6, 0.2], **settings}).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if not path.startswith("estimators"):
                parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
    return model


def images(n=2):
    return torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 0.25, 0.0, 1.0]], dtype=torch.float64)[:n].reshape(n, *SHAPE)


def model_parameters(model):
    return [p for group in model.parameter_groups().values() for p in group]


def draws_of(model, x, *, repeats, rows):
    """Value and gradient of the mean loss of `rows` copies of x, `repeats` times."""
    parameters, many = model_parameters(model), x.expand(rows, *x.shape[1:])
    draws = []
    for _ in range(repeats):
        mean = model.loss(many).mean()
        gradients = torch.autograd.grad(mean, parameters)
        draws.append(torch.cat([mean.detach().reshape(1), *(g.flatten() for g in gradients)]))
    return torch.stack(draws)


def assert_same_mean(a, b):
    """Two sets of draws (N, entries) have the same mean, within the stated bound on standard errors."""
    error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    difference = (a.mean(0) - b.mean(0)).abs()
    assert (difference - Z_BOUND * error).max() < 1e-9, f"z = {(difference / error.clamp_min(1e-12)).max():.1f}"


class Recorder(GradientEstimator):
    """Keeps what it was asked."""

    families = (torch.distributions.Distribution,)

    def is_unbiased(self, q):
        return False

    def evaluations(self, q):
        return self.num_samples, 0

    def estimate(self, q, leaves, f, context):
        self.q, self.f, self.context, self.z = q, f, context, sample(q)
        return Estimate(f(self.z))


ONE = torch.ones((), dtype=torch.float64)
STANDARD = {
    "normal": Normal(0 * ONE, ONE),
    "laplace": Laplace(0 * ONE, ONE),
    "gamma": Gamma(2 * ONE, 3 * ONE),
    "beta": Beta(ONE, ONE),
    "dirichlet": Dirichlet(ONE.expand(3)),
}


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("kl", ["analytic", "sampled"])
@pytest.mark.parametrize("hidden", [[], [4]], ids=["linear", "relu"])
@pytest.mark.parametrize("name", LAYERS)
def test_one_layer_loss_is_that_of_the_formula(name, hidden, kl, likelihood):
    model = build(
        Recorder(), **LAYERS[name], hidden=hidden, kl=kl, likelihood=likelihood, pixel_scale=0.3, gamma_prior=(2.0, 3.0)
    )
    x = images()
    loss = model.loss(x)
    recorded = model.estimators[0]
    z, q = recorded.z[0], recorded.q
    output = model.decoder[0](z)
    pixels = Bernoulli(logits=output, validate_args=False) if likelihood == "bernoulli" else Normal(output, 0.3)
    expected = -pixels.log_prob(x.flatten(1)).sum(-1)
    p = STANDARD[name]
    if kl == "analytic":
        expected = expected + kl_divergence(q.base_dist, p.expand(q.base_dist.batch_shape)).sum(-1)[0]
    else:
        expected = expected + (q.base_dist.log_prob(z)[0] - p.log_prob(z)).sum(-1)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(recorded.context, x.flatten(1) - model.data_mean)


@pytest.mark.parametrize("kl", ["analytic", "sampled"])
@pytest.mark.parametrize("name", NESTED)
def test_two_layer_loss_is_that_of_the_formula(name, kl):
    model = build(Recorder(), **NESTED[name], hidden=[4], activation="tanh", kl=kl)
    x = images()
    loss = model.loss(x)
    first, second = model.estimators
    q1, q2 = first.q, second.q
    z1, z2 = first.z, second.z  # one sample inside one sample shares its axis
    pixels = Bernoulli(logits=model.decoder[0](z1), validate_args=False)
    value = -pixels.log_prob(x.flatten(1)).sum(-1) - model._q(0, model.decoder[1](z2)).log_prob(z1)
    upper = model._q(1, model.encoder[1](z1))
    torch.testing.assert_close(upper.log_prob(z2), q2.log_prob(z2))
    if kl == "analytic":
        value = value - q1.entropy() + kl_divergence(upper, model._prior().expand(upper.batch_shape))
    else:
        value = value + q1.log_prob(z1) + upper.log_prob(z2) - model._prior().log_prob(z2)
    torch.testing.assert_close(loss, value[0])


@pytest.mark.parametrize("kl", ["analytic", "sampled"])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        *((name, lambda: StochasticBackprop(num_samples=2)) for name in LAYERS),
        *((name, lambda: REINFORCE(num_samples=2)) for name in LAYERS),
        ("gamma", GeneralizedReparameterization),
        ("beta", GeneralizedReparameterization),
        ("laplace", lambda: StochasticBackprop(f_gradient=False)),
        ("dirichlet", lambda: LAX(Surrogate([5]))),
    ],
)
def test_estimators_agree_about_the_gradient_of_one_layer(name, make, kl):
    settings = {**LAYERS[name], "hidden": [3], "kl": kl}
    x = images(1)
    reference = draws_of(build(Pathwise(num_samples=2), **settings), x, repeats=20, rows=2000)
    torch.manual_seed(1)
    assert_same_mean(draws_of(build(make(), **settings), x, repeats=20, rows=2000), reference)


@pytest.mark.parametrize("name", NESTED)
def test_estimators_agree_about_the_gradient_of_two_layers_of_different_families(name):
    x = images(1)
    reference = draws_of(build(Pathwise(), **NESTED[name]), x, repeats=20, rows=2000)
    torch.manual_seed(1)
    assert_same_mean(draws_of(build(StochasticBackprop(), **NESTED[name]), x, repeats=20, rows=1000), reference)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("name", ["normal", "beta"])
def test_loss_and_bounds_are_those_of_quadrature(name, likelihood):
    """One latent, so that its whole line can be integrated over."""
    model = build(Pathwise(), latent=name, num_latents=[1], likelihood=likelihood, pixel_scale=0.8)
    x = images(1)
    with torch.no_grad():
        model.encoder[0].last.bias += 2  # shapes above 1: no poles at the ends
    q = model._q(0, model.encoder[0](x.flatten(1) - model.data_mean))
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    z = (16 * u - 8 if name == "normal" else u)[:, None]
    width = 16 / 200_000 if name == "normal" else 1 / 200_000
    log_p = model._prior().log_prob(z) - model._pixel_cost(x.flatten(1), model.decoder[0](z))
    log_q = q.log_prob(z)
    likelihood_ = (log_p.logsumexp(0) + math.log(width)).detach()
    elbo = ((log_q.exp() * (log_p - log_q)).sum() * width).detach()
    assert likelihood_ - elbo > 1e-3  # else this test could not tell one from the other
    many = x.expand(20_000, *SHAPE)
    loss = model.loss(many).detach()
    assert abs(loss.mean() + elbo) < Z_BOUND * loss.std() / math.sqrt(len(loss)) + 1e-4
    log_weights = model.log_weights(x.flatten(1), 100_000)
    got_elbo, bound = model.bounds(x, 100_000)
    weights = (log_weights - likelihood_).exp()
    assert abs(got_elbo - elbo) < Z_BOUND * log_weights.std() / math.sqrt(100_000) + 1e-4
    assert abs(bound - likelihood_) < Z_BOUND * weights.std() / math.sqrt(100_000) + 1e-4


@pytest.mark.parametrize("kl", ["analytic", "sampled"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("name", [*LAYERS, *NESTED])
def test_costs_know_their_changes_and_slopes(name, likelihood, kl):
    model = build(Recorder(), **(LAYERS | NESTED)[name], likelihood=likelihood, kl=kl)
    model.loss(images())
    f, z = model.estimators[0].f, model.estimators[0].z
    terms = f.terms if isinstance(f, Sum) else [f]
    assert isinstance(terms[0], BernoulliLinear if likelihood == "bernoulli" else GaussianLinear)
    if name in NESTED:
        assert isinstance(terms[1], FirstLayerLinear)
        terms = [term for term in terms if term is not terms[1]]  # draws noise of its own
    assert f.closed_derivatives == (name in LAYERS)
    f = Sum(terms)
    vectors = f.event_dim == 2
    z_new = 0.9 * z + 0.1 * (torch.eye(3).double().reshape(3, *(1,) * (z.ndim - 1), 3) if vectors else z.flip(0))
    direction = (z_new - z) if vectors else None
    plain = CallableObjective(lambda z: f(z), event_dim=f.event_dim)
    torch.testing.assert_close(f.coordinate_change(z, z_new), plain.coordinate_change(z, z_new))
    torch.testing.assert_close(
        f.coordinate_slope(z, z_new, direction), plain.coordinate_slope(z, z_new, direction), rtol=1e-6, atol=1e-6
    )


def test_relu_networks_are_never_differentiated_twice():
    """The second derivative of a ReLU network misses its kinks: it would bias the scale of a normal."""
    settings = {"num_latents": [2], "hidden": [6], "likelihood": "gaussian"}
    x = images(1)
    kinked = build(Recorder(), **settings)
    kinked.loss(x)
    with pytest.raises(ValueError, match="kinks in the latents of layer 0"):
        kinked.estimators[0].f.coordinate_derivative(kinked.estimators[0].z, 2)
    smooth = build(Recorder(), **settings, activation="softplus")
    smooth.loss(x)
    assert smooth.estimators[0].f.coordinate_derivative(smooth.estimators[0].z, 2).abs().min() > 0
    with pytest.raises(ValueError, match="kinks"):
        build(StochasticBackprop("series", order=2), **settings)
    build(StochasticBackprop("series", order=2), **settings, activation="softplus")


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_output_of_zero_is_the_standard_member(name):
    family = LATENT_FAMILIES[name]
    shape = (2, 3) if name == "dirichlet" else (2,)
    zero = family.on(torch.zeros(5, len(family.floors) * math.prod(shape)), shape)
    standard = family.of(*(torch.full(shape, number) for number in family.standard))
    assert (zero.batch_shape, zero.event_shape) == ((5,), shape)
    torch.testing.assert_close(kl_divergence(zero, standard.expand((5,))), torch.zeros(5), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_densities_in_parts_add_up_and_stay_finite_at_the_edge(name):
    family = LATENT_FAMILIES[name]
    shape = (2, 3) if name == "dirichlet" else (2,)
    q = family.on(torch.randn(5, len(family.floors) * math.prod(shape), dtype=torch.float64), shape)
    z = q.sample((4,))
    parts = log_densities(q, z)
    assert parts.shape == z.shape
    torch.testing.assert_close(parts.flatten(2).sum(-1), q.log_prob(z))
    single = family.on(torch.randn(5, len(family.floors) * math.prod(shape)), shape)
    for edge in (0.0, 1.0):
        z = torch.full((5, *shape), edge, requires_grad=True)
        total = log_densities(single, z).sum()
        (gradient,) = torch.autograd.grad(total, z)
        assert total.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("output", [-1e4, -30.0, 30.0, 1e4], ids=str)
@pytest.mark.parametrize("estimator", [Pathwise(), StochasticBackprop(), REINFORCE()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("kl", ["analytic", "sampled"])
@pytest.mark.parametrize("name", LAYERS)
def test_extreme_posteriors_are_finite_in_float32(name, kl, estimator, output):
    model = build(estimator, **LAYERS[name], kl=kl).float()
    with torch.no_grad():
        bias = model.encoder[0].last.bias
        bias.copy_(torch.tensor([output, -output]).repeat(len(bias))[: len(bias)])
    x = images().float()
    loss = model.loss(x)
    loss.mean().backward()
    assert loss.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model_parameters(model))
    assert all(bound.isfinite().all() for bound in model.bounds(x, 3))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*LAYERS, "gamma, normal"])
def test_half_precision_stays_near_single(name, precision):
    model = build(StochasticBackprop(), **(LAYERS | NESTED)[name], hidden=[3]).float()
    x = images(1).float().expand(500, *SHAPE)
    wide = model.loss(x).mean().detach()
    with torch.autocast("cpu", dtype=precision):
        mixed = model.loss(x).mean()
    mixed.backward()
    true = copy.deepcopy(model).to(precision).loss(x.to(precision)).float().mean()
    assert all(p.grad.isfinite().all() for p in model_parameters(model))
    assert float(mixed.detach()) == pytest.approx(float(wide), abs=0.5)
    assert float(true.detach()) == pytest.approx(float(wide), abs=0.5)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_pixels_start_at_the_training_mean(likelihood):
    mean = [0.0, 0.5, 1.0, 0.2]
    model = ContinuousLatentModel(Pathwise(), SHAPE, num_latents=[3], data_mean=mean, likelihood=likelihood)
    with torch.no_grad():
        model.decoder[0].last.weight.zero_()
    expected = torch.tensor(mean).clip(0.001, 0.999) if likelihood == "bernoulli" else torch.tensor(mean)
    torch.testing.assert_close(model.sample_prior(3).flatten(1), expected.expand(3, 4))


def test_prior_samples_come_from_the_top_down():
    settings = {"latent": ["laplace", "gamma"], "num_latents": [1, 1], "gamma_prior": (2.0, 4.0)}
    model = build(Pathwise(), likelihood="gaussian", **settings)
    n = 50_000
    got = model.sample_prior(n).flatten(1)
    top = Gamma(torch.tensor(2.0).double(), 4.0).sample((n, 1))
    first = model._q(0, model.decoder[1](top)).sample()
    expected = model.decoder[0](first).detach()
    for moment in (1, 2):
        assert_same_mean(got**moment, expected**moment)


def test_building_a_model_takes_no_randomness_and_leaves_no_trace():
    torch.manual_seed(3)
    model = ContinuousLatentModel(REINFORCE(), SHAPE, num_latents=[2], data_mean=0.5)
    after = torch.rand(1)
    torch.manual_seed(3)
    rehearse, ContinuousLatentModel._rehearse = ContinuousLatentModel._rehearse, lambda *_: None
    try:
        unrehearsed = ContinuousLatentModel(REINFORCE(), SHAPE, num_latents=[2], data_mean=0.5)
    finally:
        ContinuousLatentModel._rehearse = rehearse
    assert torch.equal(after, torch.rand(1))
    assert all(module.training for module in model.modules())
    for name, value in unrehearsed.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


class Data(pl.LightningDataModule):
    def __init__(self, x):
        super().__init__()
        self.x, self.mean = x, x.mean(0)

    def loader(self):
        return DataLoader(self.x, batch_size=3)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader


def test_fit_test_and_predict(tmp_path):
    model = ContinuousLatentModel(
        StochasticBackprop(), SHAPE, latent=["gamma", "laplace"], num_latents=[3, 2], hidden=[4], test_samples=3
    )
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=1,
        log_every_n_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[GradientVariance(num_samples=3)],
    )
    data = Data(torch.rand(7, *SHAPE))
    trainer.fit(model, datamodule=data)
    logged = trainer.callback_metrics
    assert {"train/loss", "val/loss", "gradient/encoder/variance", "gradient/logits/estimators.1/snr"} <= set(logged)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    torch.testing.assert_close(model.data_mean, data.mean.flatten())
    loaded = ContinuousLatentModel.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert [family.make for family in loaded.families] == [Gamma, Laplace]
    (tested,) = trainer.test(loaded, datamodule=data, verbose=False)
    assert set(tested) == {"test/elbo", "test/bound"}
    predicted = trainer.predict(loaded, datamodule=data)
    assert [p["reconstructions"].shape for p in predicted] == [(3, *SHAPE), (3, *SHAPE), (1, *SHAPE)]
    assert [latents.shape for latents in predicted[0]["latents"]] == [(3, 3), (3, 2)]
    assert loaded.reconstruct(data.x).shape == data.x.shape


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_training_lowers_the_loss_as_far_as_pathwise_does(name):
    kinds = torch.tensor([0.9, 0.1]).repeat(32).reshape(-1, 1, 1, 1)  # bright and dark images
    x = (torch.rand(64, *SHAPE) < kinds).float()
    losses = {}
    for estimator in (Pathwise(), StochasticBackprop()):
        torch.manual_seed(0)
        settings = {"num_latents": [1 if name == "dirichlet" else 2], "num_categories": 2}
        model = ContinuousLatentModel(estimator, SHAPE, latent=name, data_mean=0.5, **settings)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
        for _ in range(150):
            optimizer.zero_grad()
            model.loss(x).mean().backward()
            optimizer.step()
        losses[type(estimator)] = -float(model.bounds(x, 200)[0].mean())
    independent_pixels = 4 * math.log(2)
    assert max(losses.values()) < independent_pixels - 0.1
    assert losses[StochasticBackprop] == pytest.approx(losses[Pathwise], abs=0.05)


def test_independent_families_are_events():
    q = build(Pathwise(), latent="dirichlet", num_latents=[2], num_categories=3)._q(0, torch.zeros(5, 6))
    assert isinstance(q, Independent)
    assert (q.batch_shape, q.event_shape) == ((5,), (2, 3))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: build(REBAR(), latent="normal"), TypeError, "REBAR supports .*; got Normal"),
        (lambda: build(GeneralizedReparameterization(), **NESTED["gamma, normal"]), TypeError, "got Normal"),
        (
            lambda: build(StochasticBackprop("series", order=12), latent="gamma", hidden=[3], activation="tanh"),
            ValueError,
            "order 12",
        ),
        (lambda: build(Pathwise(), num_latents=[]), ValueError, "at least one layer"),
        (lambda: build(Pathwise(), num_latents=[2, 0]), ValueError, "at least 1 variable"),
        (lambda: build(Pathwise(), latent="cauchy"), ValueError, "latent to be one of"),
        (lambda: build(Pathwise(), latent=["normal"], num_latents=[2, 2]), ValueError, "one for each of the 2 layers"),
        (lambda: build(Pathwise(), latent="dirichlet", num_categories=1), ValueError, "num_categories"),
        (lambda: build(Pathwise(), activation="sine"), ValueError, "activation to be one of"),
        (lambda: build(Pathwise(), likelihood="poisson"), ValueError, "likelihood to be one of"),
        (lambda: build(Pathwise(), kl="exact"), ValueError, "kl to be one of"),
        (lambda: build(Pathwise(), pixel_scale=0.0), ValueError, "pixel_scale"),
        (lambda: build(Pathwise(), gamma_prior=(1.0, 0.0)), ValueError, "gamma_prior"),
        (lambda: build(Pathwise(), test_samples=0), ValueError, "test_samples"),
        (lambda: build(Pathwise()).loss(torch.zeros(2, 1, 3, 3)), ValueError, r"shape \('B', 1, 2, 2\)"),
    ],
)
def test_what_cannot_work_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
