"""The discrete latent model against enumeration of all its latents."""

import copy
import itertools
import math

import lightning.pytorch as pl
import pytest
import torch
from torch.distributions import Bernoulli, Normal
from torch.utils.data import DataLoader

from lightning_estimators.distributions import sample
from lightning_estimators.estimators import (
    REBAR,
    REINFORCE,
    RELAX,
    Concrete,
    Enumeration,
    GradientEstimator,
    StochasticBackprop,
)
from lightning_estimators.estimators.base import Estimate
from lightning_estimators.modules import DiscreteLatentModel, latent
from lightning_estimators.networks import Surrogate
from lightning_estimators.objectives import BernoulliLinear, CallableObjective

# A figure whose true deviation is zero exceeds this many standard errors with probability 6e-7.
Z_BOUND = 5.0
SHAPE = (1, 2, 2)
MODELS = {
    "one layer": {"num_latents": [3]},
    "one layer, nonlinear": {"num_latents": [3], "hidden": [4, 3]},
    "two layers": {"num_latents": [2, 2]},
    "two layers, nonlinear": {"num_latents": [2, 2], "hidden": [3]},
    "categorical": {"latent": "categorical", "num_latents": [2], "num_categories": 3},
    "two categorical layers": {"latent": "categorical", "num_latents": [1, 2], "num_categories": 3},
    "fixed prior": {"num_latents": [3], "prior": "fixed"},
}


def build(estimator, *, kl="analytic", seed=0, **settings):
    """A small model with weights that are far from their start, in float64."""
    torch.manual_seed(seed)
    model = DiscreteLatentModel(estimator, SHAPE, kl=kl, data_mean=[0.3, 0.5, 0.6, 0.2], **settings).double()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if not path.startswith("estimators"):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed + 1)))
    return model


def images(n=2):
    return torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 0.25, 0.0, 1.0]], dtype=torch.float64)[:n].reshape(n, *SHAPE)


def states(event_shape):
    """All values of one layer, flat."""
    variables, categories = event_shape[0], event_shape[1:]
    options = torch.eye(categories[0]).tolist() if categories else [[0.0], [1.0]]
    rows = [list(itertools.chain(*choice)) for choice in itertools.product(options, repeat=variables)]
    return torch.tensor(rows, dtype=torch.float64)


def log_prob(b, logits, event_shape):
    """log p(b) of flat b given flat logits, by the book."""
    if len(event_shape) == 1:
        return (b * logits.sigmoid().log() + (1 - b) * (1 - logits.sigmoid()).log()).sum(-1)
    return (b * logits.unflatten(-1, event_shape).softmax(-1).flatten(-2).log()).sum(-1)


def log_joint(model, x):
    """log p(x, b) and log q(b|x) at all b, each of shape (number of states, B)."""
    pixels = x.flatten(1)
    shapes, mean = model.event_shapes, model.data_mean
    log_p, log_q = [], []
    for bs in itertools.product(*(states(shape) for shape in shapes)):
        q = log_prob(bs[0], model.encoder[0](pixels - mean), shapes[0])
        p = log_prob(bs[-1], model.prior.flatten(), shapes[-1])
        below, below_shape = pixels, (pixels.shape[1],)
        for i, b in enumerate(bs):
            p = p + log_prob(below, model.decoder[i](b.reshape(shapes[i])), below_shape)
            if i:
                q = q + log_prob(b, model.encoder[i](below.reshape(shapes[i - 1])), shapes[i])
            below, below_shape = b, shapes[i]
        log_p.append(p)
        log_q.append(q)
    return torch.stack(log_p), torch.stack(log_q)


def negative_elbo(model, x):
    log_p, log_q = log_joint(model, x)
    return (log_q.exp() * (log_q - log_p)).sum(0)


def model_parameters(model):
    return [p for group in model.parameter_groups().values() for p in group]


def flat_gradient(value, parameters):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])


def assert_mean(draws, expected):
    """draws (N, ...) have this mean, within the stated bound on standard errors."""
    error = draws.std(0) / math.sqrt(len(draws))
    excess = (draws.mean(0) - expected).abs() - Z_BOUND * error
    # Entries that do not vary must agree to rounding.
    assert excess.max() < 1e-9, f"off by {(draws.mean(0) - expected).abs().max()}, standard error {error.max()}"


@pytest.mark.parametrize("kl", ["analytic", "sampled"])
@pytest.mark.parametrize("name", MODELS)
def test_enumeration_gives_the_exact_negative_elbo_and_gradient(name, kl):
    model = build(Enumeration(), kl=kl, **MODELS[name])
    x = images()
    loss, exact = model.loss(x), negative_elbo(model, x)
    torch.testing.assert_close(loss, exact)
    parameters = model_parameters(model)
    torch.testing.assert_close(flat_gradient(loss.sum(), parameters), flat_gradient(exact.sum(), parameters))


@pytest.mark.parametrize(
    "estimator",
    [REINFORCE(), REBAR(), StochasticBackprop(num_samples=2), RELAX(Surrogate([5]))],
    ids=lambda estimator: type(estimator).__name__,
)
@pytest.mark.parametrize(
    ("name", "kl"),
    [
        ("one layer", "sampled"),
        ("two layers", "analytic"),
        ("two layers, nonlinear", "sampled"),
        ("two categorical layers", "analytic"),
    ],
)
def test_average_value_and_gradient_are_those_of_the_elbo(name, kl, estimator):
    model = build(estimator, kl=kl, **MODELS[name])
    x = images(1)
    parameters = model_parameters(model)
    exact = negative_elbo(model, x).squeeze()
    expected = torch.cat([exact.reshape(1), flat_gradient(exact, parameters)]).detach()
    torch.manual_seed(2)
    many = x.expand(1500, *SHAPE)
    draws = []
    for _ in range(40):
        mean = model.loss(many).mean()
        draws.append(torch.cat([mean.reshape(1), flat_gradient(mean, parameters)]).detach())
    assert_mean(torch.stack(draws), expected)


@pytest.mark.parametrize("name", ["one layer, nonlinear", "two layers", "categorical"])
def test_validation_is_the_negative_elbo_of_hard_samples_even_for_a_relaxation(name):
    model = build(Concrete(temperature=2.0), **MODELS[name])
    x = images(1)
    exact = negative_elbo(model, x).detach()
    torch.manual_seed(2)
    many = x.expand(40_000, *SHAPE)
    with torch.no_grad():
        relaxed = model.loss(many)
    with pytest.raises(AssertionError):  # the relaxed objective is another one, so this test can tell
        assert_mean(relaxed, exact)
    logged = {}
    model.log = lambda name, metric, **_: logged.update({name: metric.compute()})
    model.validation_step(many, 0)
    spread = model._negative_elbo(many, lambda i, q, f, context: f(sample(q))).std() / math.sqrt(len(many))
    assert abs(logged["val/loss"] - exact) < Z_BOUND * spread + 1e-4  # metrics are in float32


@pytest.mark.parametrize("name", MODELS)
def test_importance_weighted_bound_approaches_the_log_likelihood(name):
    model = build(REINFORCE(), **MODELS[name])
    x = images()
    log_p, log_q = log_joint(model, x)
    likelihood = log_p.logsumexp(0)
    torch.manual_seed(3)
    n = 100_000
    elbo, bound = model.bounds(x, n)
    # Delta method: the log of a mean of n weights has standard error sd(w) / (E w sqrt(n)).
    weight = (log_p - log_q).exp()
    relative = ((log_q.exp() * weight.square()).sum(0) / likelihood.exp().square() - 1).sqrt()
    assert ((bound - likelihood).abs() < Z_BOUND * relative / math.sqrt(n) + 1e-12).all()
    deviation = ((log_q.exp() * (log_p - log_q).square()).sum(0) - negative_elbo(model, x).square()).sqrt()
    assert ((elbo + negative_elbo(model, x)).abs() < Z_BOUND * deviation / math.sqrt(n) + 1e-12).all()
    assert (likelihood + negative_elbo(model, x) > 1e-3).all()  # else this test could not tell one from the other


@pytest.mark.parametrize("elements", [1, 2**24], ids=["chunks of one", "one chunk"])
def test_chunks_do_not_change_the_bound(monkeypatch, elements):
    model = build(REINFORCE(), num_latents=[2, 1])
    x = images(1)
    log_p, log_q = (terms.squeeze(1) for terms in log_joint(model, x))
    log_w = log_p - log_q
    pairs = torch.logaddexp(log_w[:, None], log_w) - math.log(2)
    expected = (log_q.exp()[:, None] * log_q.exp() * pairs).sum()
    monkeypatch.setattr(latent, "MAX_ELEMENTS", elements)
    torch.manual_seed(4)
    _, bound = model.bounds(x.expand(50_000, *SHAPE), 2)
    assert_mean(bound, expected)


def test_five_thousand_samples_never_hold_more_than_the_limit(monkeypatch):
    monkeypatch.setattr(latent, "MAX_ELEMENTS", 10_000)
    model = build(REINFORCE(), num_latents=[3])
    sizes, draw = [], model.log_weights
    monkeypatch.setattr(model, "log_weights", lambda x, n: sizes.append(n * x.numel()) or draw(x, n))
    model.bounds(images(), 5000)
    assert sum(sizes) == 5000 * images().numel()
    assert max(sizes) <= 10_000


@pytest.mark.parametrize("name", ["one layer", "two layers, nonlinear", "categorical"])
def test_prior_samples_and_reconstructions_have_the_means_of_the_model(name):
    model = build(REINFORCE(), **MODELS[name])
    x = images(1)
    log_p, log_q = log_joint(model, x)
    first = torch.stack([bs[0] for bs in itertools.product(*(states(shape) for shape in model.event_shapes))])
    means = model.decoder[0](first.unflatten(-1, model.event_shapes[0])).sigmoid()
    likelihood = torch.stack([Bernoulli(m).log_prob(x.flatten()).sum() for m in means])
    prior = (log_p.squeeze(1) - likelihood).exp()
    assert prior.sum().item() == pytest.approx(1)
    torch.manual_seed(5)
    assert_mean(model.sample_prior(20_000).flatten(1), prior @ means)
    many = model.reconstruct(x.expand(20_000, *SHAPE))
    assert many.shape == (20_000, *SHAPE)
    assert_mean(many.flatten(1), log_q.exp().squeeze(1) @ means)


@pytest.mark.parametrize("kl", ["analytic", "sampled"])
@pytest.mark.parametrize("name", ["one layer", "one layer, nonlinear", "categorical"])
def test_costs_know_their_changes(name, kl):
    model = build(Recorder(), kl=kl, **MODELS[name])
    model.loss(images())
    f, q = model.estimators[0].f, model.estimators[0].q
    z = sample(q)
    categorical = len(q.event_shape) == 2
    z_new = torch.stack([z.roll(1, -1), z.roll(2, -1)]) if categorical else 1 - z
    plain = CallableObjective(lambda b: f(b), event_dim=len(q.event_shape))
    torch.testing.assert_close(f.coordinate_change(z, z_new), plain.coordinate_change(z, z_new))
    assert not isinstance(f, CallableObjective)
    if name == "one layer" and kl == "analytic":
        assert isinstance(f, BernoulliLinear)


class Recorder(GradientEstimator):
    """Keeps what it was asked."""

    families = (Bernoulli, torch.distributions.Distribution)

    def is_unbiased(self, q):
        return False

    def evaluations(self, q):
        return self.num_samples, 0

    def estimate(self, q, leaves, f, context):
        self.q, self.f, self.context = q, f, context
        return Estimate(f(sample(q)))


def test_every_layer_gets_its_own_copy_and_the_centred_input_as_context():
    recorder = Recorder()
    model = build(recorder, num_latents=[2, 3])
    x = images()
    model.loss(x)
    assert len({id(e) for e in [recorder, *model.estimators]}) == 3
    assert list(model.gradient_estimators()) == ["estimators.0", "estimators.1"]
    for estimator in model.estimators:
        torch.testing.assert_close(estimator.context, x.flatten(1) - model.data_mean)
    assert model.estimators[1].q.batch_shape == (1, 2)  # one sample inside one sample shares its axis


def test_groups_are_encoder_decoder_and_prior():
    assert set(build(REBAR(), num_latents=[3]).parameter_groups()) == {"encoder", "decoder", "prior"}
    assert set(build(REBAR(), num_latents=[3], prior="fixed").parameter_groups()) == {"encoder", "decoder"}


def test_surrogates_have_their_size_when_the_model_is_built():
    model = DiscreteLatentModel(RELAX(), SHAPE, num_latents=[3, 2])
    assert not any(isinstance(p, torch.nn.parameter.UninitializedParameter) for p in model.parameters())
    first, second = (next(e.surrogate.parameters()).shape[-1] for e in model.estimators)
    assert (first, second) == (3 + 4, 2 + 4)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("estimator", [REBAR(), StochasticBackprop(), Concrete()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("settings", [{"num_latents": [3, 2]}, {"num_latents": [3], "hidden": [4]}], ids=str)
def test_half_precision_stays_near_single(precision, estimator, settings):
    torch.manual_seed(0)
    model = DiscreteLatentModel(estimator, SHAPE, data_mean=0.4, **settings)
    x = images(1).float().expand(3000, *SHAPE)
    wide = model.loss(x).mean().detach()
    with torch.autocast("cpu", dtype=precision):
        mixed = model.loss(x).mean()
    mixed.backward()
    true = copy.deepcopy(model).to(precision).loss(x.to(precision)).float().mean()
    assert mixed.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model_parameters(model))
    assert float(mixed.detach()) == pytest.approx(float(wide), abs=0.05)
    assert float(true.detach()) == pytest.approx(float(wide), abs=0.05)


@pytest.mark.parametrize("name", MODELS)
def test_saturated_posteriors_are_finite(name):
    model = build(REBAR(), **MODELS[name]).float()
    with torch.no_grad():
        for network in model.encoder:
            network.last.bias.copy_(torch.tensor([60.0, -60.0]).repeat(9)[: len(network.last.bias)])
    x = images().float()
    loss = model.loss(x)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model_parameters(model))
    assert all(bound.isfinite().all() for bound in model.bounds(x, 3))


class Data(pl.LightningDataModule):
    def __init__(self, x, batch_size=3, mean=0.25):
        super().__init__()
        self.x, self.batch_size = x, batch_size
        if mean is not None:
            self.mean = torch.full(SHAPE, mean)

    def loader(self):
        return DataLoader(self.x, batch_size=self.batch_size)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader


def quiet_trainer(tmp_path, **settings):
    return pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, **settings},
    )


def test_training_mean_is_taken_once_and_belongs_to_the_checkpoint(tmp_path):
    x = torch.rand(7, *SHAPE)
    model = DiscreteLatentModel(REBAR(), SHAPE, num_latents=[3], optimizer=no_step)
    quiet_trainer(tmp_path, max_steps=1).fit(model, datamodule=Data(x, mean=0.25))
    assert model.data_mean.tolist() == [0.25] * 4
    torch.testing.assert_close(model.decoder[0].last.bias, torch.logit(torch.full((4,), 0.25)))
    with torch.no_grad():
        model.decoder[0].last.bias.fill_(2.0)
    trainer = quiet_trainer(tmp_path, max_steps=1)
    trainer.fit(model, datamodule=Data(x, mean=0.75))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    resumed = DiscreteLatentModel(REBAR(), SHAPE, num_latents=[3], optimizer=no_step)
    quiet_trainer(tmp_path, max_steps=2).fit(resumed, datamodule=Data(x, mean=0.5), ckpt_path=tmp_path / "model.ckpt")
    tested = DiscreteLatentModel(REBAR(), SHAPE, num_latents=[3], test_samples=2)
    quiet_trainer(tmp_path).test(tested, datamodule=Data(x, mean=0.5), ckpt_path=tmp_path / "model.ckpt", verbose=False)
    for seen in (model, resumed, tested):
        assert seen.data_mean.tolist() == [0.25] * 4
        assert seen.decoder[0].last.bias.tolist() == [2.0] * 4


def no_step(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


def test_pixels_that_never_change_start_at_finite_bias():
    model = DiscreteLatentModel(REBAR(), SHAPE, num_latents=[3], data_mean=[0.0, 0.5, 1.0, 0.2])
    expected = torch.logit(torch.tensor([0.001, 0.5, 0.999, 0.2]))
    torch.testing.assert_close(model.decoder[0].last.bias, expected)


def test_fit_without_a_mean_says_what_to_give(tmp_path):
    model = DiscreteLatentModel(REBAR(), SHAPE, num_latents=[3])
    with pytest.raises(ValueError, match="data_mean=images"):
        quiet_trainer(tmp_path, max_steps=1).fit(model, datamodule=Data(torch.rand(7, *SHAPE), mean=None))
    given = DiscreteLatentModel(REBAR(), SHAPE, num_latents=[3], data_mean=0.5)
    quiet_trainer(tmp_path, max_steps=1).fit(given, datamodule=Data(torch.rand(7, *SHAPE), mean=None))


def test_metrics_are_means_over_images_when_the_last_batch_is_incomplete(tmp_path):
    torch.manual_seed(0)
    model = DiscreteLatentModel(REINFORCE(), SHAPE, num_latents=[3, 2], data_mean=0.5, test_samples=4)
    with torch.no_grad():  # a posterior that leaves no choice makes every figure deterministic
        for network in model.encoder:
            network.last.weight.zero_()
            network.last.bias.fill_(200.0)
    x = torch.rand(7, *SHAPE)
    expected = -negative_elbo_at_ones(model, x).mean().item()
    trainer = quiet_trainer(tmp_path)
    (tested,) = trainer.test(model, datamodule=Data(x), verbose=False)
    (validated,) = trainer.validate(model, datamodule=Data(x), verbose=False)
    assert set(tested) == {"test/elbo", "test/bound"}
    assert set(validated) == {"val/loss"}
    assert tested["test/elbo"] == pytest.approx(expected, rel=1e-5)
    assert tested["test/bound"] == pytest.approx(expected, rel=1e-5)
    assert validated["val/loss"] == pytest.approx(-expected, rel=1e-5)


def negative_elbo_at_ones(model, x):
    ones = [torch.ones(shape) for shape in model.event_shapes]
    joint = Bernoulli(logits=model.prior).log_prob(ones[-1]).sum()
    joint = joint + Bernoulli(logits=model.decoder[1](ones[1])).log_prob(ones[0]).sum()
    pixels = model.decoder[0](ones[0])
    cost = torch.nn.functional.binary_cross_entropy_with_logits(
        pixels.expand(len(x), -1), x.flatten(1), reduction="none"
    )
    return cost.sum(-1) - joint


def test_not_a_number_is_not_dropped_from_a_mean(tmp_path):
    model = DiscreteLatentModel(REINFORCE(), SHAPE, num_latents=[3], data_mean=0.5)
    x = torch.rand(7, *SHAPE)
    x[0] = math.nan
    (validated,) = quiet_trainer(tmp_path).validate(model, datamodule=Data(x), verbose=False)
    assert math.isnan(validated["val/loss"])


def test_predict_returns_reconstructions_and_latents(tmp_path):
    model = DiscreteLatentModel(REBAR(), SHAPE, num_latents=[3, 2], data_mean=0.5)
    trainer = quiet_trainer(tmp_path)
    predicted = trainer.predict(model, datamodule=Data(torch.rand(7, *SHAPE)))
    assert [p["reconstructions"].shape for p in predicted] == [(3, *SHAPE), (3, *SHAPE), (1, *SHAPE)]
    assert [latents.shape for latents in predicted[0]["latents"]] == [(3, 3), (3, 2)]
    again = trainer.predict(model, datamodule=Data(torch.rand(7, *SHAPE)))
    assert [len(p["latents"]) for p in again] == [2, 2, 2]


class Refuses(Recorder):
    families = (Normal,)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: build(Refuses(), num_latents=[3]), TypeError, "supports Normal; got Bernoulli"),
        (lambda: build(Enumeration(limit=4), num_latents=[2, 3]), ValueError, "8"),
        (lambda: build(REBAR(), num_latents=[]), ValueError, "at least one layer"),
        (lambda: build(REBAR(), num_latents=[3, 0]), ValueError, "at least 1 variable"),
        (lambda: build(REBAR(), latent="binary"), ValueError, "latent to be one of"),
        (lambda: build(REBAR(), kl="exact"), ValueError, "kl to be one of"),
        (lambda: build(REBAR(), prior="uniform"), ValueError, "prior to be one of"),
        (lambda: build(REBAR(), latent="categorical", num_categories=1), ValueError, "num_categories"),
        (lambda: build(REBAR(), test_samples=0), ValueError, "test_samples"),
        (lambda: DiscreteLatentModel(REBAR(), SHAPE, data_mean=[0.1, 0.2]), ValueError, "one number, or one per pixel"),
        (lambda: DiscreteLatentModel(REBAR(), (4, 4)), ValueError, "channels, height and width"),
        (lambda: build(REBAR()).loss(torch.zeros(2, 1, 3, 3)), ValueError, r"shape \('B', 1, 2, 2\)"),
        (lambda: build(REBAR()).loss([[0.0, 1.0], torch.zeros(2, *SHAPE)]), ValueError, "got list"),
    ],
)
def test_what_cannot_work_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("weight", [math.inf, math.nan, 3e38])
@pytest.mark.parametrize("latent", ["bernoulli", "categorical"])
def test_one_weight_that_is_not_finite_stops_training_by_name(latent, weight):
    model = DiscreteLatentModel(StochasticBackprop(), (1, 4, 4), latent=latent, num_latents=[5], data_mean=0.3)
    with torch.no_grad():
        model.decoder[0].last.weight[3, 2] = weight
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_steps=3, accelerator="cpu", enable_model_summary=False, **quiet)
    with pytest.raises(FloatingPointError, match="Non-finite loss or gradient at step 0"):
        trainer.fit(model, torch.utils.data.DataLoader(torch.rand(8, 1, 4, 4).round(), batch_size=8))
