from __future__ import annotations

import contextlib
import functools
import math

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.distributions import Bernoulli, Independent

from lightning_estimators.baselines import LearnedBaseline
from lightning_estimators.estimators import REBAR, REINFORCE, RELAX, GradientEstimator
from lightning_estimators.modules import EstimatorModule
from lightning_estimators.modules.finite_training import FiniteTraining
from lightning_estimators.modules.refusals import refuse_unsupported
from modules.tiny import Gradients, Recorder, Rows, Tiny, rows, same, trainer

SGD = functools.partial(torch.optim.SGD, lr=0.1)
pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")


@pytest.fixture(autouse=True)
def seed(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")  # as seed_everything(1) does, but for the generators of Python and NumPy
    torch.manual_seed(1)


def fit(module, data=None, **options):
    run = trainer(**options)
    run.fit(module, Rows(rows() if data is None else data))
    return run


# --- one step, two optimizers ------------------------------------------------------------------------------------


def test_loss_is_all_that_a_users_module_needs():
    class Coin(EstimatorModule):
        def __init__(self):
            super().__init__(optimizer=functools.partial(torch.optim.Adam, lr=0.05))
            self.logits = nn.Parameter(torch.zeros(3))
            self.estimator = REBAR()

        def loss(self, batch):
            q = Independent(Bernoulli(logits=self.logits.expand(len(batch), 3)), 1)
            return self.estimator(q, lambda b: (b - torch.tensor([0.0, 0.2, 0.9])).square().sum(-1))

    module = Coin()
    fit(module, max_epochs=30)
    assert (module.logits > 0).tolist() == [False, False, True]
    assert (module.logits.abs() > 1).all()


@pytest.mark.parametrize("estimator", [REBAR, RELAX, REINFORCE, lambda: REINFORCE(LearnedBaseline())])
def test_one_batch_is_one_global_step(estimator):
    module = Tiny(estimator())
    run = fit(module, max_steps=9)
    assert run.global_step == 9
    assert list(run.optimizers[0].parts) == ["model", "surrogate"][: 2 if list(module.estimator.parameters()) else 1]
    for optimizer in run.optimizers[0].parts.values():
        assert {int(entry["step"]) for entry in optimizer.state.values()} == {9}


def test_both_groups_move_and_each_by_its_own_optimizer():
    frozen = functools.partial(torch.optim.SGD, lr=0.0)
    for options, moving in [
        ({"optimizer": SGD, "surrogate_optimizer": frozen}, {"encoder", "decoder"}),
        ({"optimizer": frozen, "surrogate_optimizer": SGD}, {"estimator"}),
    ]:
        module = Tiny(REBAR(), **options)
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        fit(module, max_steps=3)
        moved = {name.partition(".")[0] for name, p in module.named_parameters() if not torch.equal(p, before[name])}
        assert moved == moving


def test_step_is_that_of_a_plain_loop():
    module, plain, data = Tiny(REBAR(), optimizer=SGD, surrogate_optimizer=SGD), Tiny(REBAR()), rows()
    optimizer = SGD(plain.parameters())

    class Reseed(pl.Callback):  # the noise of a plain loop that is seeded by the batch
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            pl_module.noise = lambda stream: torch.manual_seed(batch_idx) and contextlib.nullcontext()

    fit(module, data, max_epochs=1, callbacks=[Reseed()])
    for index, batch in enumerate(data):
        torch.manual_seed(index)
        optimizer.zero_grad()
        plain.loss(batch).mean().backward()
        optimizer.step()
    assert same(module.state_dict(), plain.state_dict())


# --- structure ---------------------------------------------------------------------------------------------------


def test_estimators_and_parameter_groups():
    class Nested(Tiny):
        def __init__(self):
            inner = REBAR()
            outer = RELAX(surrogate=nn.Linear(7, 1))  # latents and context
            super().__init__(outer)
            self.stack = nn.ModuleList([inner, REINFORCE()])
            self.again = inner  # the same object under a second name
            self.estimator.inside = RELAX(surrogate=nn.Linear(3, 1))  # a part of an estimator
            self.decoder.bias.requires_grad_(False)
            self.estimator.tied = self.encoder.bias

    module = Nested()
    assert list(module.gradient_estimators()) == ["estimator", "stack.0", "stack.1"]
    assert all(isinstance(estimator, GradientEstimator) for estimator in module.gradient_estimators().values())
    groups = module.parameter_groups()
    assert {name: len(group) for name, group in groups.items()} == {"encoder": 1, "decoder": 1}
    surrogate = module.surrogate_parameters()
    assert len(surrogate) == len(set(surrogate)) == 3 + 3 + 2 + 1  # outer, inside, inner, tied
    assert any(p is module.encoder.bias for p in surrogate)


def test_noise_depends_on_every_counter_and_only_on_them():
    module = Tiny(REBAR())

    def noise(stream, batch_idx):
        with module.noise(stream, batch_idx):
            return torch.rand(4).tolist()

    first = noise(1, 0)
    torch.rand(100)
    assert noise(1, 0) == first
    others = [noise(stream, batch_idx) for stream in range(1, 4) for batch_idx in range(6)] + [noise(0, 0), noise(4, 0)]
    assert len({tuple(other) for other in others}) == 20


def test_training_noise_does_not_depend_on_validation_or_other_draws():
    class Drawing(pl.Callback):
        def on_train_batch_end(self, *_):
            torch.rand(3)

    results = []
    for callbacks in [], [Drawing()]:
        module = Tiny(REBAR())
        run = trainer(max_epochs=2, callbacks=callbacks)
        run.fit(module, Rows(rows()), Rows(rows(seed=1)) if callbacks else None)
        results.append(module.state_dict())
    assert same(*results)


def test_seed_is_chosen_kept_or_drawn(monkeypatch, tmp_path):
    def run(module, ckpt_path=None, steps=2):
        made = trainer(max_steps=steps)
        made.fit(module, Rows(rows()), ckpt_path=ckpt_path)
        made.save_checkpoint(tmp_path / "saved.ckpt")
        return torch.load(tmp_path / "saved.ckpt", weights_only=True)["noise_seed"]

    module = Tiny(REBAR())
    assert run(module) == 1
    monkeypatch.delenv("PL_GLOBAL_SEED")
    torch.manual_seed(3)
    drawn = run(module)
    assert drawn != run(module)  # another fit, other noise
    torch.manual_seed(3)
    assert run(module) == drawn  # but a function of torch's generator
    assert run(Tiny(REBAR()), ckpt_path=tmp_path / "saved.ckpt", steps=4) == drawn


# --- options -----------------------------------------------------------------------------------------------------


def test_clipping_by_norm_applies_to_each_group():
    free, clipped = Gradients(), Gradients()
    fit(Tiny(REBAR(), optimizer=SGD), max_steps=1, callbacks=[free])
    fit(Tiny(REBAR(), optimizer=SGD), max_steps=1, callbacks=[clipped], gradient_clip_val=0.01)
    for surrogate in False, True:
        names = [name for name in free.steps[0] if name.startswith("estimator") == surrogate]
        norm = math.sqrt(sum(free.steps[0][name].square().sum().item() for name in names))
        assert norm > 0.02
        for name in names:
            torch.testing.assert_close(clipped.steps[0][name], free.steps[0][name] * 0.01 / norm, rtol=1e-4, atol=1e-9)


def test_clipping_by_value():
    free, clipped = Gradients(), Gradients()
    options = {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"}
    fit(Tiny(REBAR()), max_steps=1, callbacks=[free])
    fit(Tiny(REBAR()), max_steps=1, callbacks=[clipped], **options)
    assert any((gradient.abs() > 0.05).any() for gradient in free.steps[0].values())
    for name, gradient in free.steps[0].items():
        torch.testing.assert_close(clipped.steps[0][name], gradient.clamp(-0.05, 0.05))


def test_accumulation_averages_and_steps_at_the_end_of_the_epoch():
    data = rows(batches=5)
    run_gradients = Gradients()
    frozen = functools.partial(torch.optim.SGD, lr=0.0)

    each = Gradients()
    fit(Tiny(REBAR(), optimizer=frozen, surrogate_optimizer=frozen), data, max_epochs=1, callbacks=[each])
    module = Tiny(REBAR(), optimizer=frozen, surrogate_optimizer=frozen)
    run = fit(module, data, max_epochs=2, callbacks=[run_gradients], accumulate_grad_batches=2)
    assert run.global_step == 6  # windows of 2, 2 and 1 in each epoch
    parts = [each.steps[0:2], each.steps[2:4], each.steps[4:5]]
    for window, accumulated in zip(parts, run_gradients.steps, strict=False):
        for name, gradient in accumulated.items():
            torch.testing.assert_close(gradient, sum(step[name] for step in window) / 2)


def test_validation_in_the_middle_of_a_window_keeps_its_gradients():
    results = []
    for interval in (5, 1):
        module = Tiny(REBAR())
        run = trainer(max_epochs=1, val_check_interval=interval, accumulate_grad_batches=2)
        run.fit(module, Rows(rows(batches=5)), Rows(rows(seed=1)))
        results.append(module.state_dict())
    assert same(*results)


def test_max_steps_counts_optimizer_steps():
    module = Tiny(REBAR())
    run = fit(module, max_steps=4, accumulate_grad_batches=3)
    assert run.global_step == 4
    assert module.batches_trained() == 12


def test_checkpoints_every_n_steps(tmp_path):
    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    with pytest.warns() as caught:  # Lightning warns of other things
        fit(Tiny(REBAR()), max_steps=10, callbacks=[every], enable_checkpointing=True)
    assert {path.name for path in tmp_path.iterdir()} == {f"step={step}.ckpt" for step in (3, 6, 9)}
    assert not [warning for warning in caught if "manual optimization" in str(warning.message)]


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_schedulers_step_by_epoch_or_by_step(interval):
    decay = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    slower = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.9)
    options = {"lr_scheduler": decay, "surrogate_lr_scheduler": slower, "lr_scheduler_interval": interval}
    module = Tiny(REBAR(), optimizer=SGD, surrogate_optimizer=SGD, **options)
    run = fit(module, max_epochs=2, accumulate_grad_batches=2)
    times = 2 if interval == "epoch" else 6
    assert [group["lr"] for group in run.optimizers[0].param_groups] == [
        pytest.approx(0.1 * 0.5**times),
        pytest.approx(0.1 * 0.9**times),
    ]


def test_an_unfinished_epoch_does_not_step_schedulers_by_epoch():
    decay = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    run = fit(Tiny(REBAR(), optimizer=SGD, lr_scheduler=decay), max_steps=10)  # 6 batches in an epoch
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize(("interval", "steps"), [("epoch", 3), ("step", 18)])
def test_plateau_follows_its_metric(interval, steps):
    plateau = functools.partial(ReduceLROnPlateau, monitor="train/loss", patience=0, factor=0.5, threshold=1e9)
    # With this threshold no value is an improvement: every step halves the rate.
    module = Tiny(REBAR(), optimizer=SGD, lr_scheduler=plateau, lr_scheduler_interval=interval)
    run = fit(module, max_epochs=3)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**steps, rel=1e-6)


def test_plateau_watches_validation():
    plateau = functools.partial(ReduceLROnPlateau, monitor="val/loss")
    module = Tiny(REBAR(), surrogate_lr_scheduler=plateau)
    run = trainer(max_epochs=2)
    run.fit(module, Rows(rows()), Rows(rows(seed=1)))
    assert run.lr_scheduler_configs[0].scheduler.last_epoch == 2
    assert run.lr_scheduler_configs[0].scheduler.best == pytest.approx(float(run.callback_metrics["val/loss"]), rel=0.5)


def test_plateau_without_its_metric_says_what_there_is():
    plateau = functools.partial(ReduceLROnPlateau, monitor="val/bound")
    with pytest.raises(MisconfigurationException, match=r"metric val/bound.*Available metrics are: .*train/loss"):
        fit(Tiny(REBAR(), lr_scheduler=plateau), max_epochs=1)
    with pytest.raises(ValueError, match="does not say which metric"):
        fit(Tiny(REBAR(), lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau), max_epochs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_scheduler_interval": "batch"}, '"epoch" or "step", got \'batch\''),
        ({"optimizer": "Adam"}, "optimizer must make an optimizer .* got 'Adam'"),
        ({"surrogate_lr_scheduler": 3}, "surrogate_lr_scheduler must make a scheduler .* got 3"),
    ],
)
def test_arguments_are_checked_when_built(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Tiny(REBAR(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "16-true"}, 'Use precision="bf16-true"'),
    ],
)
def test_options_of_the_trainer_that_cannot_work_are_refused_at_the_start(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        fit(Tiny(REBAR()), max_steps=1, default_root_dir=tmp_path, **options)


def test_deepspeed_is_refused():
    run = trainer()
    sharded = object.__new__(DeepSpeedStrategy)  # cannot be built without a GPU
    sharded._precision_plugin = run.precision_plugin
    run._accelerator_connector.strategy = sharded
    with pytest.raises(ValueError, match=r"DeepSpeedStrategy is not supported by Tiny.*ModelParallelStrategy"):
        refuse_unsupported(run, Tiny(REBAR()))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true", "32-true"])
@pytest.mark.parametrize("estimator", [REBAR, RELAX])
def test_precisions(precision, estimator):
    module = Tiny(estimator(), optimizer=SGD)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    run = fit(module, max_steps=3, precision=precision)
    assert math.isfinite(run.callback_metrics["train/loss"])
    for name, parameter in module.named_parameters():
        if precision != "bf16-true" or parameter.ndim:  # a small step on one bfloat16 number may round to none
            assert not torch.equal(before[name].to(parameter.dtype), parameter), name


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"overfit_batches": 2, "max_epochs": 3}])
def test_debugging_options(tmp_path, options):
    module = Tiny(REBAR())
    run = trainer(tmp_path, **options)
    run.fit(module, Rows(rows()), Rows(rows(seed=1)))
    assert run.global_step == (1 if "fast_dev_run" in options else 6)
    assert "estimator/estimator/eta" in run.callback_metrics


def test_fitting_twice_goes_on_from_the_weights():
    module = Tiny(REBAR(), optimizer=SGD)
    fit(module, max_steps=3)
    between = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    run = fit(module, max_steps=3)
    assert run.global_step == 3
    assert not same(between, module.state_dict())
    run = trainer(max_steps=3)  # the same trainer, a second time
    run.fit(module, Rows(rows()))
    run.fit_loop.epoch_loop.max_steps = 5
    run.fit(module, Rows(rows()))
    assert run.global_step == 5


# --- what is logged ----------------------------------------------------------------------------------------------


def test_logged_keys_and_cadence():
    recorder = Recorder()
    run = trainer(max_epochs=2, logger=recorder, log_every_n_steps=4)
    calls = []

    class Counting(REBAR):
        def diagnostics(self):
            calls.append(run.global_step)
            return super().diagnostics()

    module = Tiny(Counting())
    run.fit(module, Rows(rows()))
    keys = {"train/loss", "epoch"} | {
        f"estimator/estimator/{name}" for name in ("eta", "temperature", "surrogate_loss")
    }
    assert [(step, set(metrics)) for step, metrics in recorder.logged] == [(step, keys) for step in (3, 7, 11)]
    assert calls == [3, 7, 11]  # off the logging steps nothing is computed
    assert set(run.progress_bar_metrics) == {"train/loss"}


def test_logged_loss_is_the_mean_cost():
    recorder, costs = Recorder(), []

    class Keeping(Tiny):
        def loss(self, batch):
            costs.append(super().loss(batch))
            return costs[-1]

    fit(Keeping(REBAR()), max_epochs=1, logger=recorder)
    assert [metrics["train/loss"] for _, metrics in recorder.logged] == [cost.mean().item() for cost in costs]


# --- what goes wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda costs: costs.mean(), r"shape \(8,\), got shape \(\)"),
        (lambda costs: costs[:, None], r"got shape \(8, 1\)"),
        (lambda costs: costs[:4], r"got shape \(4,\)"),
        (lambda costs: costs.detach(), "no parameter is attached"),
        (lambda costs: 0.0, "must return a tensor of costs, one per example, got float"),
    ],
)
def test_costs_of_the_wrong_shape_are_refused_at_the_first_step(wrong, message):
    class Wrong(Tiny):
        def loss(self, batch):
            return wrong(super().loss(batch))

    with pytest.raises((ValueError, TypeError), match=rf"Wrong\.loss\(batch\).*{message}"):
        fit(Wrong(REBAR()), max_steps=1)


def test_batches_need_not_be_tensors():
    class Labelled(Tiny):
        def loss(self, batch):
            return super().loss(batch["images"][0])

    class Loader(Rows):
        def __iter__(self):
            return ({"images": (x, torch.zeros(3)), "note": "text"} for x in super().__iter__())

    run = trainer(max_epochs=1)
    run.fit(Labelled(REBAR()), Loader(rows()))
    assert run.global_step == 6


def test_a_module_without_parameters_of_its_own_is_refused():
    class Empty(EstimatorModule):
        def __init__(self):
            super().__init__()
            self.estimator = REBAR()

        def loss(self, batch):
            raise NotImplementedError

    with pytest.raises(ValueError, match="Empty has no trainable parameters outside its estimators"):
        fit(Empty(), max_steps=1)


class Breaks(Tiny):
    """Goes wrong at one batch: in the loss of two examples, or in the gradient of one weight only."""

    def __init__(self, what, at=4):
        super().__init__(REBAR(), optimizer=SGD, surrogate_optimizer=SGD)
        self.what, self.at = what, at

    def loss(self, batch):
        costs = super().loss(batch)
        if self.batches_trained() == self.at:
            if self.what == "loss":
                return torch.where(torch.arange(len(costs)) < 2, torch.inf, costs)
            costs = costs + (self.decoder.bias[0] - self.decoder.bias[0].detach()).abs().sqrt()  # slope 1 / 0
        return costs


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_training_before_the_step(what, tmp_path):
    module, reference = Breaks(what), Breaks("nothing", at=-1)
    last = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True)
    with pytest.raises(FloatingPointError) as caught:
        fit(module, max_steps=20, callbacks=[last], enable_checkpointing=True)
    message = str(caught.value)
    assert "at step 4 (epoch 0, batch 4)" in message
    assert f"{2 if what == 'loss' else 0} of 8 per-example costs" in message
    assert "estimator (REBAR): " in message
    assert "eta=" in message
    if what == "gradient":
        assert "gradients not finite: decoder.bias\n" in message
    fit(reference, max_steps=4)
    assert same(module.state_dict(), reference.state_dict())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 4
    assert same(dict(saved["state_dict"]), dict(reference.state_dict()))


@pytest.mark.parametrize("every", [1, 100])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_where_nobody_waits_for_the_device_what_is_not_finite_never_enters_a_weight(what, every, tmp_path, monkeypatch):
    """As on a CUDA device: zeros take the place of the gradients, and the error comes before anything is saved."""
    monkeypatch.setattr(FiniteTraining, "_verdict_comes_late", lambda self, module: True)
    module, reference = Breaks(what), Breaks("nothing", at=-1)
    last = ModelCheckpoint(tmp_path, every_n_train_steps=every, save_last=True)
    with pytest.raises(FloatingPointError) as caught:
        fit(module, max_steps=20, callbacks=[last], enable_checkpointing=True)
    message = str(caught.value)
    assert "at step 4 (epoch 0, batch 4)" in message
    assert "zeros in place of its gradients" in message
    assert f"{2 if what == 'loss' else 0} of 8 per-example costs" in message
    assert module.global_step == 5  # the step with zeros, by SGD without momentum no step at all
    fit(reference, max_steps=4)
    assert same(module.state_dict(), reference.state_dict())
    assert [path.name for path in tmp_path.glob("last*")] == (["last.ckpt"] if every == 1 else [])
    if every == 1:
        assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4


def test_a_last_step_that_is_not_finite_is_told_at_the_end_of_the_epoch(monkeypatch):
    monkeypatch.setattr(FiniteTraining, "_verdict_comes_late", lambda self, module: True)
    with pytest.raises(FloatingPointError, match="at step 4 "):
        fit(Breaks("gradient"), max_steps=5)


def test_a_step_of_an_earlier_run_is_not_told_to_the_next(monkeypatch):
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if batch_idx == 4:  # after the step, before its verdict was read
                raise RuntimeError("stop")

    monkeypatch.setattr(FiniteTraining, "_verdict_comes_late", lambda self, module: True)
    module = Breaks("gradient")
    with pytest.raises(RuntimeError, match="stop"):
        fit(module, max_steps=20, callbacks=[Stop()])
    module.at = -1
    fit(module, max_steps=2)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    module = Tiny(REBAR(), optimizer=functools.partial(torch.optim.SGD, lr=3e38))  # overflows in the update
    last = ModelCheckpoint(tmp_path, every_n_train_steps=1)
    with pytest.raises(FloatingPointError, match=r"Not saving a checkpoint at step 1: .*decoder.weight.* not finite"):
        fit(module, 10 * rows(), max_steps=20, callbacks=[last], enable_checkpointing=True)
    assert not list(tmp_path.iterdir())


def test_checkpoints_are_plain_data(tmp_path):
    scheduler = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1)
    module = Tiny(RELAX(), optimizer=functools.partial(torch.optim.Adam, lr=0.01), lr_scheduler=scheduler)
    run = fit(module, max_steps=2)
    run.save_checkpoint(tmp_path / "saved.ckpt")
    assert torch.load(tmp_path / "saved.ckpt", weights_only=True)["global_step"] == 2
