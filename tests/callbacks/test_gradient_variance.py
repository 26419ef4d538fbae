import copy
import csv
import math
import os
import random
import subprocess
import sys
import warnings
from collections import OrderedDict
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from closed_form import TARGET, Coins, loader, score_moments
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from noisy import Noisy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.distributions import Bernoulli, Independent

from lightning_estimators.baselines import NoBaseline
from lightning_estimators.callbacks import GradientVariance, Reconstructions
from lightning_estimators.distributions import distribution_parameters
from lightning_estimators.estimators import REBAR, REINFORCE
from lightning_estimators.modules import DiscreteLatentModel, chain_optimizers

IMAGES = torch.linspace(0, 1, 24 * 16).view(24, 1, 4, 4).sin().abs()


def trainer(*callbacks, **options):
    defaults = {"max_epochs": 1, "logger": False, "log_every_n_steps": 1, "limit_val_batches": 0}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return pl.Trainer(**{**defaults, **quiet, "accelerator": "cpu", **options}, callbacks=list(callbacks))


def fit(module, data, *callbacks, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = trainer(*callbacks, **options)
        made.fit(module, data, data if options.get("limit_val_batches") else None)
    return made


def images(batch_size=6):
    return torch.utils.data.DataLoader(IMAGES, batch_size=batch_size)


def rows(logger):
    logger.save()
    path = Path(logger.log_dir, "metrics.csv")
    if not path.exists():
        return []
    with open(path) as file:
        return list(csv.DictReader(file))


def steps_of(key, logger):
    return [int(row["step"]) for row in rows(logger) if row.get(key)]


def test_matches_closed_form():
    # 2000 entries and 50 draws: the standard error of the averaged variance is under 1 percent.
    count, draws = 2000, 50
    module = Coins(count)
    mean, variance = score_moments(module)
    figures = fit(module, loader(count), GradientVariance(num_samples=draws)).callback_metrics
    expected = variance.mean().item() / count**2  # of the mean over `count` examples
    total, signal = variance.sum().item(), mean.square().sum().item()
    for group in ("coins", "logits/score"):
        assert figures[f"gradient/{group}/variance"].item() == pytest.approx(expected, rel=0.05)
        assert figures[f"gradient/{group}/log_variance"].item() == pytest.approx(math.log(expected), abs=0.05)
        snr = math.sqrt((signal + total / draws) / total)
        assert figures[f"gradient/{group}/snr"].item() == pytest.approx(snr, rel=0.05)


def test_both_methods_side_by_side():
    both = GradientVariance(num_samples=3), GradientVariance("moments", prefix="adam")
    figures = fit(Coins(4), loader(4), *both, max_epochs=3).callback_metrics
    assert {"gradient/coins/snr", "adam/coins/snr"} <= figures.keys()
    assert figures["gradient/coins/variance"] != figures["adam/coins/variance"]


def test_no_noise_and_no_gradient():
    figures = fit(Coins(10), loader(10), GradientVariance(num_samples=3)).callback_metrics
    assert figures["gradient/exact/variance"] == 0
    assert figures["gradient/exact/log_variance"] == -math.inf
    assert figures["gradient/exact/snr"] == math.inf
    assert figures["gradient/idle/variance"] == 0
    assert figures["gradient/idle/snr"] == 0


def test_equals_brute_force_over_repeated_backward():
    pl.seed_everything(3, verbose=False)
    model = DiscreteLatentModel(REBAR(), image_shape=(1, 4, 4), num_latents=[5, 3], data_mean=0.5)
    reference = copy.deepcopy(model).train()
    figures = fit(model, images(24), GradientVariance(num_samples=4)).callback_metrics

    draws = {}
    for k in range(4):
        reference.zero_grad()
        noise = reference.noise(4 + k)
        noise.__enter__()
        seen = {}

        def remember(_, args, path, seen=seen):
            logits = distribution_parameters(args[0])["logits"]
            if logits.requires_grad:
                logits.retain_grad()
                seen.setdefault(path, []).append(logits)

        hooks = [
            e.register_forward_pre_hook(partial(remember, path=p)) for p, e in reference.gradient_estimators().items()
        ]
        reference.loss(IMAGES).mean().backward()
        noise.__exit__(None, None, None)
        for hook in hooks:
            hook.remove()
        for name, group in reference.parameter_groups().items():
            draws.setdefault(name, []).append(torch.cat([p.grad.flatten() for p in group]))
        for path, calls in seen.items():
            first = next(call.grad for call in calls if call.grad is not None)
            draws.setdefault(f"logits/{path}", []).append(first.flatten())

    names = {"encoder", "decoder", "prior", "logits/estimators.0", "logits/estimators.1"}
    assert set(draws) == names
    assert {key.split("/", 1)[1].rsplit("/", 1)[0] for key in figures if key.startswith("gradient/")} == names
    for name, gradients in draws.items():
        stacked = torch.stack(gradients).double()
        entries = {"logits/estimators.0": 24 * 5, "logits/estimators.1": 24 * 3, "prior": 3}.get(name)
        assert entries is None or stacked.shape[1] == entries
        variance = stacked.var(0)
        assert variance.mean() > 0
        torch.testing.assert_close(figures[f"gradient/{name}/variance"].double(), variance.mean(), rtol=1e-4, atol=0.0)
        snr = stacked.mean(0).norm() / variance.sum().sqrt()
        torch.testing.assert_close(figures[f"gradient/{name}/snr"].double(), snr, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    "watcher",
    [
        partial(GradientVariance, "fresh", num_samples=2),
        partial(GradientVariance, "moments"),
        partial(Reconstructions, 5),
    ],
    ids=["fresh", "moments", "reconstructions"],
)
@pytest.mark.filterwarnings("ignore")
def test_training_is_bit_identical(watcher, precision, tmp_path):
    results = []
    for callbacks in ([], [watcher()]):
        torch.manual_seed(5)
        random.seed(5)
        module = Noisy()
        loggers = [CSVLogger(tmp_path, name=f"csv{len(callbacks)}"), TensorBoardLogger(tmp_path)]
        made = fit(
            module,
            images(),
            *callbacks,
            max_epochs=3,
            precision=precision,
            logger=loggers,
            limit_val_batches=2,
            num_sanity_val_steps=1,
            accumulate_grad_batches=2,
        )
        optimizers = [copy.deepcopy(optimizer.state_dict()) for optimizer in made.optimizers]
        logs = [{k: v for k, v in row.items() if not k.startswith("gradient/")} for row in rows(loggers[0])]
        logs = [row for row in logs if any(v for k, v in row.items() if k not in ("step", "epoch"))]
        results.append((module.state_dict(), optimizers, logs, torch.get_rng_state(), module.training))
        grads = [parameter.grad for parameter in module.parameters()]
        results[-1] += (grads,)
        if callbacks and isinstance(callbacks[0], GradientVariance):
            assert any(float(v or 0) > 0 for row in rows(loggers[0]) for k, v in row.items() if k.endswith("/variance"))
    without, with_callback = results
    assert isinstance(without[0], OrderedDict)
    assert len(without[2]) > 8
    assert_identical(without, with_callback)


def assert_identical(left, right):
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_identical(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_identical(a, b)
    else:
        assert left == right


@pytest.mark.parametrize(
    ("period", "every", "expected"),
    [
        (1, None, range(10)),
        (2, None, [1, 3, 5, 7, 9]),
        (2, 4, [3, 7]),
        (2, 3, [3, 5, 9]),
        (4, 3, [3, 7]),
        (20, None, []),
    ],
)
def test_logged_at_logged_steps_only(period, every, expected, tmp_path):
    calls = []

    class Counted(Coins):
        def loss(self, batch):
            calls.append(self.trainer.fit_loop.total_batch_idx)
            return super().loss(batch)

    loggers = [CSVLogger(tmp_path), TensorBoardLogger(tmp_path)]
    callback = GradientVariance(num_samples=2, every_n_steps=every)
    fit(Counted(4), loader(4, 5), callback, max_epochs=2, log_every_n_steps=period, logger=loggers)
    expected = list(expected)
    assert sorted(calls) == sorted([*range(10), *expected, *expected])
    events = EventAccumulator(loggers[1].log_dir).Reload()
    for group in ("coins", "exact", "logits/score"):
        for figure in ("variance", "log_variance", "snr"):
            key = f"gradient/{group}/{figure}"
            assert steps_of(key, loggers[0]) == expected
            if expected:
                assert [event.step for event in events.Scalars(key)] == expected
            else:
                assert key not in events.Tags()["scalars"]


def test_moments_equal_hand_computation():
    history = []

    class Watch(pl.Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):  # clipped by then
            if pl_module.coins.grad is not None:
                history.append(pl_module.coins.grad.clone().double())

        def on_train_end(self, trainer, pl_module):
            history.append(pl_module.coins.grad.clone().double())

    module = Coins(6, optimizer=partial(torch.optim.Adam, betas=(0.8, 0.95)))
    options = {"gradient_clip_val": 0.5}
    figures = fit(module, loader(6, 7), GradientVariance("moments"), Watch(), **options).callback_metrics
    first, second = torch.zeros(6).double(), torch.zeros(6).double()
    for gradient in history:
        first = 0.8 * first + 0.2 * gradient
        second = 0.95 * second + 0.05 * gradient.square()
    assert len(history) == 7
    first, second = first / (1 - 0.8**7), second / (1 - 0.95**7)
    variance = (second - first.square()).mean().item()
    assert variance > 0
    assert figures["gradient/coins/variance"].item() == pytest.approx(variance, rel=1e-4)
    assert figures["gradient/coins/log_variance"].item() == pytest.approx(math.log(variance), abs=1e-4)
    snr = (first.norm() / (second - first.square()).sum().sqrt()).item()
    assert figures["gradient/coins/snr"].item() == pytest.approx(snr, rel=1e-4)
    assert not any("logits" in key for key in figures)


def test_moments_start_at_the_second_step(tmp_path):
    logger = CSVLogger(tmp_path)
    fit(Coins(6), loader(6, 4), GradientVariance("moments"), logger=logger)
    assert steps_of("gradient/coins/variance", logger) == [1, 2, 3]


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam])
def test_moments_of_other_adams(optimizer):
    figures = fit(Coins(6, optimizer=optimizer), loader(6, 4), GradientVariance("moments")).callback_metrics
    assert figures["gradient/coins/variance"] > 0


class SignMomentum(torch.optim.Optimizer):
    """Has betas like Adam, and only one moment."""

    def __init__(self, params):
        super().__init__(params, {"betas": (0.9, 0.99)})

    def step(self, closure=None):
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["exp_avg"] = parameter.grad.clone()
        return loss


@pytest.mark.parametrize("optimizer", [partial(torch.optim.SGD, lr=0.1), torch.optim.Adamax, SignMomentum])
def test_moments_refuse_other_optimizers(optimizer):
    module = Coins(4, optimizer=optimizer)
    steps = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            steps.append(trainer.global_step)

    name = getattr(optimizer, "func", optimizer).__name__
    with pytest.raises(TypeError, match=f"optimizer is {name}.*method='fresh'"):
        fit(module, loader(4, 50), GradientVariance("moments"), Watch(), log_every_n_steps=40)
    assert len(steps) == (1 if optimizer is SignMomentum else 0)


def test_moments_need_an_optimizer():
    class Fixed(Coins):
        def configure_optimizers(self):
            return None

        def training_step(self, batch, batch_idx):
            return None

    with pytest.raises(TypeError, match="no optimizer"):
        fit(Fixed(4), loader(4), GradientVariance("moments"))


def test_moments_allow_any_surrogate_optimizer():
    module = Noisy(surrogate_optimizer=partial(torch.optim.SGD, lr=1e-6))
    assert len(module.surrogate_parameters()) > 0
    figures = fit(module, images(), GradientVariance("moments")).callback_metrics
    assert figures["gradient/decoder/variance"] > 0


class Plain(pl.LightningModule):
    """What somebody writes who has never seen EstimatorModule."""

    def __init__(self, count):
        super().__init__()
        self.coins = nn.Parameter(torch.linspace(-2, 2, count))
        self.score = REINFORCE(NoBaseline())
        self.loss = nn.MSELoss()  # an attribute that many modules have
        self.seen = 0

    def training_step(self, batch, batch_idx):
        self.seen += 1
        q = Independent(Bernoulli(logits=self.coins[batch["index"], None]), 1)
        loss = self.score(q, lambda b: (b - TARGET).square().sum(-1)).mean()
        self.log("train/loss", loss)
        return {"loss": loss}

    def configure_optimizers(self):
        return chain_optimizers(self)


def test_a_plain_lightning_module_is_measured_as_well():
    count, draws = 2000, 50
    module = Plain(count)
    _, variance = score_moments(module)
    figures = fit(module, loader(count), GradientVariance(num_samples=draws)).callback_metrics
    expected = variance.mean().item() / count**2
    for group in ("coins", "logits/score"):
        assert figures[f"gradient/{group}/variance"].item() == pytest.approx(expected, rel=0.05)
    assert module.seen == 1  # the draws are no training steps
    assert (
        fit(Plain(4), loader(4), GradientVariance("moments"), max_epochs=2).callback_metrics["gradient/coins/snr"] > 0
    )


def test_refuses_modules_that_step_their_optimizers_themselves():
    class Manual(Plain):
        def __init__(self):
            super().__init__(4)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            raise AssertionError("refused too late")

    with pytest.raises(TypeError, match=r"Manual.*automatic_optimization=False"):
        fit(Manual(), loader(4), GradientVariance())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 1}, "num_samples must be an integer of at least 2.*got 1"),
        ({"num_samples": 2.0}, "num_samples"),
        ({"every_n_steps": 0}, "every_n_steps must be a positive integer.*got 0"),
        ({"every_n_steps": True}, "every_n_steps"),
        ({"method": "momemts"}, "'fresh' or 'moments', got 'momemts'"),
    ],
)
def test_refuses_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        GradientVariance(**options)


def test_fast_dev_run_measures_and_progress_bar_stays_clear():
    made = fit(Coins(4), loader(4), GradientVariance(num_samples=2, every_n_steps=100), fast_dev_run=True)
    assert "gradient/coins/variance" in made.callback_metrics
    assert not any(key.startswith("gradient") for key in made.progress_bar_metrics)


def test_measures_in_the_precision_of_training():
    seen = []

    class Watched(Coins):
        def loss(self, batch):
            seen.append((torch.is_autocast_enabled("cpu"), self.training))
            return super().loss(batch)

    fit(Watched(4), loader(4), GradientVariance(num_samples=2), precision="bf16-mixed")
    assert seen == [(True, True)] * 3


def test_batches_of_a_window_get_different_noise(tmp_path):
    logger = CSVLogger(tmp_path)
    frozen = Coins(50, optimizer=partial(torch.optim.SGD, lr=0.0))
    options = {"logger": logger, "max_epochs": 2, "accumulate_grad_batches": 3}
    fit(frozen, loader(50, 18), GradientVariance(num_samples=3), **options)
    figures = [row["gradient/coins/variance"] for row in rows(logger) if row["gradient/coins/variance"]]
    assert len(figures) == 12  # measured where a window ends
    assert len(set(figures)) == 12


def test_resumed_run_logs_the_same(tmp_path):
    os.environ["PL_GLOBAL_SEED"] = "4"
    figures = []
    for name, stops in {"whole": [4], "resumed": [2, 4]}.items():
        torch.manual_seed(0)
        random.seed(0)
        path = None
        for stop in stops:
            logger = CSVLogger(tmp_path, name=f"{name}{stop}")
            made = fit_from(path, Noisy(), GradientVariance(num_samples=2), logger=logger, max_epochs=stop)
            path = tmp_path / f"{name}{stop}.ckpt"
            made.save_checkpoint(path)
        measured = [row for row in rows(logger) if row["gradient/encoder/variance"]]
        figures.append([{k: v for k, v in row.items() if "gradient/" in k or k == "step"} for row in measured][-8:])
    assert [int(row["step"]) for row in figures[0]] == list(range(8, 16))
    assert figures[0] == figures[1]


def fit_from(path, module, *callbacks, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = trainer(*callbacks, **options)
        made.fit(module, images(), ckpt_path=path)
    return made


def test_two_processes(tmp_path):
    script = Path(__file__).with_name("two_processes.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, tmp_path], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    assert_identical(ranks[0]["figures"], ranks[1]["figures"])
    for rank in ranks:
        assert_identical(*rank["trained"][:2])
    assert_identical(ranks[0]["trained"], ranks[1]["trained"])
    # Ranks hold the same 2000 coins, with noise of their own: the variance of the averaged gradient is half of one's.
    _, variance = score_moments(Coins(2000))
    single = variance.mean().item() / 2000**2
    figures = ranks[0]["figures"]
    assert figures["gradient/coins/variance"].item() == pytest.approx(single / 2, rel=0.05)
    # To the mean over all 4000 examples, the logits of each contribute half of what they do to that of their rank.
    assert figures["gradient/logits/score/variance"].item() == pytest.approx(single / 4, rel=0.05)
    mean, variance = score_moments(Coins(2000))
    total = variance.sum().item() / 2
    expected = math.sqrt((mean.square().sum().item() + total / 50) / total)
    assert figures["gradient/coins/snr"].item() == pytest.approx(expected, rel=0.05)
    assert figures["gradient/exact/variance"] == 0
    events = EventAccumulator(str(next(tmp_path.glob("**/version_0/events*")).parent)).Reload()
    assert "images/prior_samples" in events.Tags()["images"]
    # A comparison: in the first process, whose sums are then of itself only, and without an effect on training.
    for rank in ranks:
        assert_identical(*rank["trained"][2:])
    assert [rank["sizes"] for rank in ranks] == [{1, 2}, {2}]
    assert ranks[1]["rows"] is None
    assert ranks[0]["rows"] == [
        "lower_estimator: REBAR(), upper_estimator: REINFORCE(baseline=MovingAverage(decay=0.5))",
        "StochasticBackprop()",
    ]
    files = {path.name for path in tmp_path.rglob("comparison*")}
    assert files == {f"comparison_epoch1.{kind}" for kind in ("txt", "json", "png")}
