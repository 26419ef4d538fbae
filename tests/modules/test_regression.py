"""Bayesian logistic regression: gradients against quadrature, figures against formulas."""

import functools
import math
import os

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid, softplus

from lightning_estimators.baselines import LearnedBaseline, LeaveOneOut
from lightning_estimators.callbacks import GradientVariance
from lightning_estimators.datamodules import BreastCancer, Toy
from lightning_estimators.estimators import LAX, REBAR, REINFORCE, Enumeration, Pathwise, StochasticBackprop
from lightning_estimators.modules import BayesianLogisticRegression, regression
from lightning_estimators.modules.dataset_elbo import DatasetELBO
from lightning_estimators.networks import Surrogate
from modules.tiny import Recorder, trainer

ESTIMATORS = {
    "pathwise": Pathwise,
    "jump": StochasticBackprop,
    "differences": functools.partial(StochasticBackprop, f_gradient=False),
    "series-4": functools.partial(StochasticBackprop, "series", 4),
    "series-8": functools.partial(StochasticBackprop, "series", 8),
    "score": REINFORCE,
    "score-leave-one-out": lambda num_samples: REINFORCE(LeaveOneOut(), num_samples),
    "LAX": lambda num_samples: LAX(Surrogate([5]), num_samples),
}
BOUND = 5  # on |z|: under 200 comparisons, so a false alarm has probability 1e-4


def examples(features, count=5):
    x = torch.linspace(-2, 2, features * count, dtype=torch.float64).reshape(features, count).T.cos() * 2
    return x, torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0] * (count // 5), dtype=torch.float64)


def build(estimator, features=2, scale=0.1, loc=0.4, **settings):
    torch.manual_seed(0)
    model = BayesianLogisticRegression(estimator, features, **{"num_data": 20, **settings}).double()
    with torch.no_grad():
        model.loc.copy_(torch.linspace(-loc, 2 * loc, len(model.loc)))
        model.log_scale.copy_(math.log(scale) + torch.linspace(0, 0.2, len(model.loc)))
    return model


def nodes(family):
    """Points and weights whose averages are expectations under the standard distribution of a family."""
    if family == "normal":
        points, weights = np.polynomial.hermite_e.hermegauss(60)
        points, weights = torch.tensor(points), torch.tensor(weights / weights.sum())
    else:
        points, weights = map(torch.tensor, np.polynomial.laguerre.laggauss(60))
        points, weights = torch.cat([-points, points]), torch.cat([weights, weights]) / 2
    return points, weights


def quadrature(model, x, y):
    """The loss without sampling, by Gauss's rules along each weight (two weights)."""
    points, weights = nodes(model.posterior)
    standard = torch.cartesian_prod(points, points)
    w = model.loc + model.log_scale.exp() * standard
    cost = softplus(-y * (w @ x.T)).sum(-1)
    expected = (torch.cartesian_prod(weights, weights).prod(-1) * cost).sum()
    return expected * (int(model.data_size) / len(y)) + model.kl()


def gradients(model, loss):
    return torch.cat(torch.autograd.grad(loss, [model.loc, model.log_scale]))


# Normals have no rule without derivatives of f; their series ends by itself.
CASES = [
    *((name, "laplace", scale) for name in ESTIMATORS for scale in ((0.1,) if "series" in name else (0.1, 0.8))),
    *((name, "normal", 0.8) for name in ESTIMATORS if name != "differences"),
]


@pytest.mark.parametrize(("name", "posterior", "scale"), CASES, ids=lambda case: str(case))
def test_gradient_and_value_are_those_of_quadrature(name, posterior, scale):
    x, y = examples(2)
    model = build(
        ESTIMATORS[name](num_samples=1000), scale=scale, posterior=posterior, prior="laplace", prior_scale=0.7
    )
    exact = quadrature(model, x, y)
    expected = torch.cat([gradients(model, exact), exact.detach()[None]])
    torch.manual_seed(1)
    draws = []
    for _ in range(50):
        loss = model.loss((x, y))
        draws.append(torch.cat([gradients(model, loss.mean()), loss.detach()[:1]]))
    draws = torch.stack(draws)
    z = (draws.mean(0) - expected) / (draws.std(0) / len(draws) ** 0.5)
    assert z.abs().max() < BOUND
    # The bound means something: it would notice an error of this share of the gradient.
    assert (draws.std(0) / len(draws) ** 0.5).max() < 0.1 * expected.abs().max()


def test_series_diverges_where_scales_are_wide():
    x, y = examples(2)
    errors = []
    for order in (2, 8):
        model = build(StochasticBackprop("series", order, num_samples=20_000), scale=1.0)
        errors.append((gradients(model, model.loss((x, y)).mean()) - gradients(model, quadrature(model, x, y)))[2:])
    assert errors[1].norm() > 5 * errors[0].norm()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_minibatches_average_to_the_whole_data(name):
    x, y = examples(3, count=20)
    model = build(ESTIMATORS[name](num_samples=4), features=3, num_data=20).eval()

    def estimate(rows):
        torch.manual_seed(3)  # the weights are drawn before the data is looked at
        loss = model.loss((x[rows], y[rows]))
        assert loss.shape == (len(rows),)
        assert (loss == loss[0]).all()
        return torch.cat([gradients(model, loss.mean()), loss.detach()[:1]])

    whole = estimate(torch.arange(20))
    parts = torch.stack([estimate(rows) for rows in torch.randperm(20).split(5)])
    assert (parts.std(0) > 1e-3).all()
    torch.testing.assert_close(parts.mean(0), whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prior", ["laplace", "normal"])
@pytest.mark.parametrize("posterior", ["laplace", "normal"])
def test_kl_divergence_is_that_of_quadrature(prior, posterior):
    model = build(Pathwise(), posterior=posterior, prior=prior, prior_scale=1.3, scale=0.6, loc=0.0)
    points, weights = nodes(posterior)
    w = model.log_scale.exp() * points[:, None]  # at location 0 kinks are nodes' boundaries
    q = model.weights().base_dist
    p = {"laplace": torch.distributions.Laplace, "normal": torch.distributions.Normal}[prior](0.0, 1.3)
    expected = (weights[:, None] * (q.log_prob(w) - p.log_prob(w))).sum()
    torch.testing.assert_close(model.kl(), expected, rtol=1e-2, atol=0)


def test_kl_divergence_is_that_of_the_paper():
    model = build(Pathwise())
    loc, b = model.loc, model.log_scale.exp()
    torch.testing.assert_close(model.kl(), (loc.abs() + b * (-loc.abs() / b).exp() - b.log() - 1).sum())


def test_bias_is_one_more_weight():
    x, y = examples(2)
    model = build(Pathwise(num_samples=50), bias=True)
    assert model.loc.shape == model.log_scale.shape == (3,)
    other = build(Pathwise(num_samples=50), features=3)
    losses = []
    for one, features in ((model, x), (other, torch.cat([x, torch.ones(5, 1).double()], 1))):
        torch.manual_seed(2)
        losses.append(one.loss((features, y)))
    assert torch.equal(*losses)
    assert model.evaluate(x, y)[0].shape == (5,)


def certain(**settings):
    """A model that knows its weights, so that its figures have closed forms."""
    model = BayesianLogisticRegression(Pathwise(), 30, eval_samples=10, **settings)
    with torch.no_grad():
        model.loc.copy_(torch.linspace(-0.4, 0.1, 30))
        model.log_scale.fill_(-20)
    return model


def closed_form(model, x, y, size=None):
    logits = x @ model.loc.detach()
    elbo = logsigmoid(y * logits).sum() * (1 if size is None else size / len(y)) - model.kl().detach()
    return {"elbo": float(elbo), "accuracy": float(((logits > 0) == (y > 0)).float().mean())}


def check_figures(results, model, data, split):
    data.setup()
    expected = {split: closed_form(model, *getattr(data.splits, split), size=data.train_size)}
    expected["whole"] = closed_form(model, *data.splits.whole)
    assert expected["whole"]["accuracy"] != expected[split]["accuracy"]
    for result, name in zip(results, expected, strict=True):
        assert result == {f"{name}/{kind}": pytest.approx(figure, rel=1e-5) for kind, figure in expected[name].items()}


@pytest.mark.parametrize("split", ["val", "test"])
def test_figures_are_exact_with_incomplete_batches(split, tmp_path):
    data, model = BreastCancer(eval_batch_size=25), certain()
    run = trainer(tmp_path)
    results = (run.validate if split == "val" else run.test)(model, data, verbose=False)
    check_figures(results, model, data, split)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.filterwarnings("ignore")
def test_figures_are_exact_with_two_processes(tmp_path):
    data, model = BreastCancer(eval_batch_size=20), certain()
    results = trainer(tmp_path, strategy="ddp_fork", devices=2).test(model, data, verbose=False)
    check_figures(results, model, data, "test")


def test_metric_keeps_what_is_not_a_number_visible():
    metric = DatasetELBO()
    metric.update(torch.tensor([-1.0, math.nan]), torch.tensor(1.0))
    assert metric.compute().isnan()


def test_predictive_probability_averages_over_weights(monkeypatch):
    x, y = examples(2)
    model = build(Pathwise(), scale=1.0, eval_samples=200_000)
    monkeypatch.setattr(regression, "MAX_ELEMENTS", 5 * 30_000)  # in seven chunks, the last one smaller
    points, weights = nodes("laplace")
    logits = (model.loc + model.log_scale.exp() * torch.cartesian_prod(points, points)) @ x.T
    joint = torch.cartesian_prod(weights, weights).prod(-1)[:, None]
    probability, log_likelihood = model.evaluate(x, y)
    # Standard deviations below .5 and 4: five standard errors.
    torch.testing.assert_close(probability, (joint * logits.sigmoid()).sum(0).detach(), rtol=0, atol=0.0056)
    torch.testing.assert_close(log_likelihood, (joint * logsigmoid(y * logits)).sum(0).detach(), rtol=0, atol=0.045)
    assert (probability - (x @ model.loc).sigmoid()).abs().max() > 0.02


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Figures after a short training by each estimator, and what it logged."""
    found = {}
    for name in ("pathwise", "jump", "series-4", "series-8", "score"):
        pl.seed_everything(0, verbose=False)
        model = BayesianLogisticRegression(
            ESTIMATORS[name](num_samples=50), 30, optimizer=functools.partial(torch.optim.Adam, lr=0.01)
        )
        recorder, data = Recorder(), BreastCancer()
        run = trainer(
            tmp_path_factory.mktemp(name),
            max_epochs=20,
            check_val_every_n_epoch=10,
            logger=recorder,
            callbacks=[GradientVariance(num_samples=5, every_n_steps=40)],
        )
        run.fit(model, data)
        figures = {key: value for result in run.test(model, data, verbose=False) for key, value in result.items()}
        found[name] = figures, recorder.logged, run, model
    return found


@pytest.mark.parametrize("name", ["jump", "series-4", "series-8"])
def test_stochastic_backpropagation_trains_as_well_as_pathwise_gradients(trained, name):
    (reached, *_), (pathwise, *_) = trained[name], trained["pathwise"]
    assert reached["whole/accuracy"] > 0.95
    assert reached["whole/accuracy"] > pathwise["whole/accuracy"] - 0.01
    assert reached["whole/elbo"] > -150  # from -480
    assert reached["whole/elbo"] > pathwise["whole/elbo"] - 3


@pytest.mark.parametrize("name", ["pathwise", "jump", "series-4", "series-8"])
def test_variance_is_below_that_of_the_score_function(trained, name):
    for group in ("loc", "log_scale", "logits/estimator"):
        curves = [
            [metrics[key] for _, metrics in trained[case][1] if (key := f"gradient/{group}/log_variance") in metrics]
            for case in (name, "score")
        ]
        assert len(curves[0]) == 4
        assert all(ours < score - 1 for ours, score in zip(*curves, strict=True))


def test_documented_figures_are_logged(trained):
    _, logged, _, _ = trained["jump"]
    keys = {key for _, metrics in logged for key in metrics}
    named = {f"{split}/{kind}" for split in ("val", "test", "whole") for kind in ("elbo", "accuracy")}
    assert named <= keys
    assert all(f"`{key}`" in BayesianLogisticRegression.__doc__ for key in named)
    assert "train/loss" in keys
    epochs = [metrics["whole/elbo"] for _, metrics in logged if "whole/elbo" in metrics]
    assert len(epochs) == 3  # two validations and the test
    assert epochs[0] < epochs[1]


def test_checkpoint_brings_its_own_size_of_the_data(trained, tmp_path):
    _, _, run, model = trained["jump"]
    run.save_checkpoint(tmp_path / "some.ckpt")
    loaded = BayesianLogisticRegression.load_from_checkpoint(tmp_path / "some.ckpt")
    assert int(loaded.data_size) == 455
    assert loaded.num_data is None
    assert torch.equal(loaded.loc, model.loc)
    data = BreastCancer()
    data.setup()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data.splits.test), batch_size=20)
    (alone,) = trainer(tmp_path).test(loaded, loader, verbose=False)
    assert set(alone) == {"test/elbo", "test/accuracy"}
    probabilities = torch.cat(trainer(tmp_path).predict(loaded, data))
    assert probabilities.shape == (57,)
    assert float(((probabilities > 0.5) == (data.splits.test[1] > 0)).float().mean()) == pytest.approx(
        alone["test/accuracy"]
    )


def test_size_given_beats_that_of_the_datamodule(tmp_path):
    model = BayesianLogisticRegression(Pathwise(), 30, num_data=1000)
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(model, BreastCancer())
    assert int(model.data_size) == 1000
    asked = BayesianLogisticRegression(Pathwise(), 30)
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(asked, BreastCancer())
    assert int(asked.data_size) == 455


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions_run(precision, tmp_path):
    data, model = BreastCancer(), BayesianLogisticRegression(StochasticBackprop(num_samples=5), 30)
    run = trainer(tmp_path, max_steps=2, precision=precision)
    run.fit(model, data)
    assert all(math.isfinite(figure) for result in run.test(model, data, verbose=False) for figure in result.values())
    assert model.loc.abs().max() > 1e-4


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: BayesianLogisticRegression(REBAR(), 3), TypeError, "REBAR supports Bernoulli.*got Laplace"),
        (lambda: BayesianLogisticRegression(Enumeration(), 3), TypeError, "got Laplace"),
        (lambda: BayesianLogisticRegression(REINFORCE(LearnedBaseline()), 3), ValueError, "context"),
        (lambda: BayesianLogisticRegression(Pathwise(), 3, prior="cauchy"), ValueError, "prior to be one of.*'cauchy'"),
        (lambda: BayesianLogisticRegression(Pathwise(), 3, posterior="gamma"), ValueError, "posterior.*'gamma'"),
        (lambda: BayesianLogisticRegression(Pathwise(), 3, prior_scale=0.0), ValueError, "prior_scale.*positive"),
        (lambda: BayesianLogisticRegression(Pathwise(), 3, initial_scale=math.inf), ValueError, "initial_scale"),
        (lambda: BayesianLogisticRegression(Pathwise(), 0), ValueError, "num_features.*at least 1"),
        (lambda: BayesianLogisticRegression(Pathwise(), 3, num_data=0), ValueError, "num_data.*at least 1"),
        (lambda: BayesianLogisticRegression(Pathwise(), 3, num_data=1.5), ValueError, "num_data"),
        (lambda: BayesianLogisticRegression(Pathwise(), 3, eval_samples=0), ValueError, "eval_samples"),
        (lambda: build(Pathwise()).loss(torch.zeros(5, 2)), ValueError, r"batch \(x, y\).*got Tensor"),
        (lambda: build(Pathwise()).loss(examples(3)), ValueError, r"num_features=2.*\(B, 2\), got \(5, 3\)"),
        (lambda: build(Pathwise()).loss((torch.zeros(5, 2), torch.ones(5, 1))), ValueError, r"\(5, 2\) and \(5, 1\)"),
        (lambda: build(Pathwise()).loss((torch.zeros(5, 2), torch.tensor([0, 1, 1, 0, 1]))), ValueError, "2 . y - 1"),
        (
            lambda: BayesianLogisticRegression(Pathwise(), 2).loss(examples(2)),
            ValueError,
            "does not know the size",
        ),
        (
            lambda: trainer(max_steps=1).fit(BayesianLogisticRegression(Pathwise(), 1), Toy()),
            ValueError,
            "train_size.*got none",
        ),
        (
            lambda: trainer(max_steps=1).fit(BayesianLogisticRegression(Pathwise(), 3), BreastCancer()),
            ValueError,
            "BreastCancer with 30 features",
        ),
    ],
)
def test_what_cannot_work_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
