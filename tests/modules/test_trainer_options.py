"""Options and callbacks of Lightning's Trainer, on a subclass of EstimatorModule and on a plain LightningModule."""

from __future__ import annotations

import copy
import functools
import math
import pickle

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.distributions import Bernoulli, Independent
from torch.nn.utils import prune
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

from lightning_estimators.callbacks import FiniteTraining
from lightning_estimators.chained_optimizer import ChainedOptimizer
from lightning_estimators.estimators import REBAR, REINFORCE, RELAX, Concrete
from lightning_estimators.modules import chain_optimizers, clip_gradients_of_parts
from modules.tiny import Gradients, Recorder, Rows, Tiny, rows, same, state, trainer

SGD = functools.partial(torch.optim.SGD, lr=0.1)
ADAM = functools.partial(torch.optim.Adam, lr=0.01)
pytestmark = pytest.mark.filterwarnings("ignore")


class Plain(pl.LightningModule):
    """What somebody writes who has never seen EstimatorModule."""

    def __init__(self, estimator=None, **options):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            self.encoder, self.decoder = nn.Linear(4, 3), nn.Linear(3, 4)
            self.estimator = estimator or RELAX()
            self.estimator.prepare(Independent(Bernoulli(logits=torch.zeros(1, 3)), 1))
        self.options = options
        self.lr = 0.01

    def training_step(self, batch, batch_idx):
        q = Independent(Bernoulli(logits=self.encoder(batch)), 1)
        loss = self.estimator(q, lambda b: (self.decoder(b) - batch).square().sum(-1)).mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return chain_optimizers(self, **self.options)


class Subclass(Tiny):
    def __init__(self, estimator=None, **options):
        super().__init__(estimator or RELAX(), **options)
        self.lr = 0.01


BOTH = pytest.mark.parametrize("kind", [Subclass, Plain])


def fit(module, data=None, **options):
    run = trainer(**{"max_epochs": 2, **options})
    run.fit(module, Rows(rows() if data is None else data))
    return run


@BOTH
def test_lr_find_moves_the_rate_of_the_model_and_finds_one(kind, tmp_path):
    module = kind(REBAR(), optimizer=ADAM)
    run = trainer(tmp_path, max_epochs=20)
    found = Tuner(run).lr_find(module, Rows(rows(batches=40)), num_training=40, min_lr=1e-6, max_lr=10)
    assert found.results["lr"][0] < 1e-5
    assert found.results["lr"][-1] > 1e-2  # the rates really moved
    assert found.suggestion() > 1e-5
    assert module.lr == found.suggestion()
    assert not list(tmp_path.iterdir())


@BOTH
def test_scale_batch_size_finds_an_attribute_of_that_name(kind, tmp_path):
    class Sized(kind):
        def __init__(self):
            super().__init__()
            self.batch_size = 2

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.rand(64, 4), batch_size=self.batch_size)

        def val_dataloader(self):
            return self.train_dataloader()

    run = trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    assert Tuner(run).scale_batch_size(Sized(), max_trials=3, steps_per_trial=1) > 4


def test_attributes_of_common_names_belong_to_the_user():
    class Model(Tiny):
        def __init__(self):
            super().__init__(REBAR())
            self.batch_size = 64
            self.estimators = nn.ModuleList([self.estimator])
            self.parameters_seen = 0

    fit(Model())


@BOTH
@pytest.mark.parametrize("callback", [lambda: StochasticWeightAveraging(swa_lrs=0.01), WeightAveraging])
def test_averaged_weights(kind, callback):
    module, twin = kind(), kind()
    run = fit(module, max_epochs=8, callbacks=[callback()])
    assert run.global_step == 48
    fit(twin, max_epochs=8)
    assert not same(module.state_dict(), twin.state_dict())
    assert all(p.isfinite().all() for p in module.parameters())


@BOTH
def test_learning_rates_are_logged_by_part(kind):
    recorder = Recorder()
    options = {"optimizer": SGD, "surrogate_optimizer": ADAM}
    fit(kind(**options), callbacks=[LearningRateMonitor()], logger=recorder)
    seen = set().union(*(metrics for _, metrics in recorder.logged))
    assert {"lr-ChainedOptimizer/model", "lr-ChainedOptimizer/surrogate"} <= seen
    recorder = Recorder()
    scheduled = options | {"lr_scheduler": functools.partial(StepLR, step_size=1, gamma=0.5)}
    fit(kind(**scheduled), callbacks=[LearningRateMonitor()], logger=recorder)
    rates = [metrics["lr/model"] for _, metrics in recorder.logged if "lr/model" in metrics]
    assert rates == pytest.approx([0.1, 0.05])
    assert any(metrics.get("lr/surrogate") == 0.01 for _, metrics in recorder.logged)


@BOTH
@pytest.mark.parametrize("accumulate", [1, 4])
def test_estimated_steps_are_those_that_are_taken(kind, accumulate):
    class Cycled(kind):
        def configure_optimizers(self):
            (chained,), schedulers = super().configure_optimizers()
            self.estimate = self.trainer.estimated_stepping_batches
            schedule = OneCycleLR(chained, max_lr=0.1, total_steps=self.estimate)
            return [chained], [*schedulers, {"scheduler": schedule, "interval": "step"}]

    module = Cycled()
    run = fit(module, data=rows(batches=8), max_epochs=3, accumulate_grad_batches=accumulate)
    assert module.estimate == run.global_step == 24 // accumulate
    assert run.lr_scheduler_configs[-1].scheduler.last_epoch == module.estimate


@BOTH
def test_scheduler_dictionaries_mean_what_they_say(kind):
    def every_other_step(optimizer):
        return {"scheduler": StepLR(optimizer, 1, 0.5), "interval": "step", "frequency": 2}

    def lenient(optimizer):
        plateau = ReduceLROnPlateau(optimizer, patience=0, factor=0.1, threshold=1e9)
        return {"scheduler": plateau, "monitor": "never/logged", "strict": False}

    options = {"lr_scheduler": every_other_step, "surrogate_lr_scheduler": lenient}
    run = fit(kind(optimizer=SGD, surrogate_optimizer=SGD, **options), data=rows(batches=5), max_epochs=2)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**4)  # 2 of every 5 batches
    assert run.optimizers[0].param_groups[1]["lr"] == 0.1

    def watching(optimizer):
        plateau = ReduceLROnPlateau(optimizer, patience=0, factor=0.1, threshold=1e9)
        return {"scheduler": plateau, "monitor": "train/loss", "frequency": 2}

    run = fit(kind(optimizer=SGD, surrogate_optimizer=SGD, surrogate_lr_scheduler=watching), max_epochs=4)
    rates = [group["lr"] for group in run.optimizers[0].param_groups]
    assert rates == [0.1, pytest.approx(0.1 * 0.1**2)]


@BOTH
def test_a_scheduler_argument_that_makes_no_scheduler_is_refused(kind):
    with pytest.raises(TypeError, match=r"lr_scheduler must make a scheduler.*made None"):
        fit(kind(lr_scheduler=lambda optimizer: None))
    with pytest.raises(TypeError, match=r"optimizer must make a torch.optim.Optimizer.*made 3"):
        fit(kind(optimizer=lambda parameters: 3))


@BOTH
def test_an_overridden_optimizer_step_is_called(kind):
    class WarmUp(kind):
        calls = 0

        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
            WarmUp.calls += 1
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * min(1.0, (self.trainer.global_step + 1) / 500)
            optimizer.step(closure=optimizer_closure)

    run = fit(WarmUp(), max_epochs=1)
    assert WarmUp.calls == 6
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 * 6 / 500)


def test_one_plain_optimizer_of_the_users_is_enough():
    class One(Tiny):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = One(REBAR())
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    run = fit(module, gradient_clip_val=0.5)
    assert isinstance(run.optimizers[0], torch.optim.SGD)
    assert not any(torch.equal(before[name], p) for name, p in module.named_parameters())


def test_clipping_of_a_plain_module_is_joint_and_by_part_where_asked():
    class Parts(Plain):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            clip_gradients_of_parts(self, optimizer, gradient_clip_val, gradient_clip_algorithm)

    def norms(kind):
        seen = Gradients()
        torch.manual_seed(0)
        fit(kind(optimizer=SGD, surrogate_optimizer=SGD), max_steps=1, gradient_clip_val=1e-3, callbacks=[seen])
        squares = {True: 0.0, False: 0.0}
        for name, gradient in seen.steps[0].items():
            squares[name.startswith("estimator")] += gradient.square().sum().item()
        return squares

    joint, parts = norms(Plain), norms(Parts)
    assert sum(joint.values()) == pytest.approx(1e-6, rel=1e-3)
    assert list(parts.values()) == pytest.approx([1e-6, 1e-6], rel=1e-3)


def test_accumulation_by_schedule():
    run = fit(Tiny(REBAR()), max_epochs=2, callbacks=[GradientAccumulationScheduler({0: 2, 1: 3})])
    assert run.global_step == 3 + 2


def test_checkpoints_by_time(tmp_path):
    from datetime import timedelta

    saving = ModelCheckpoint(tmp_path, train_time_interval=timedelta(seconds=0), save_top_k=-1)
    fit(Tiny(REBAR()), max_epochs=1, callbacks=[saving], enable_checkpointing=True)
    assert list(tmp_path.iterdir())


@BOTH
def test_frozen_backbones_are_given_to_the_part_of_the_model(kind, tmp_path):
    class Backbone(kind):
        def __init__(self):
            super().__init__()
            self.backbone = self.encoder

    def tuning():
        return BackboneFinetuning(unfreeze_backbone_at_epoch=1, verbose=False)

    module = Backbone()
    run = fit(module, max_epochs=3, callbacks=[tuning()])
    chained = run.optimizers[0]
    assert isinstance(chained, ChainedOptimizer)
    assert set(module.encoder.parameters()) <= {p for g in chained.parts["model"].param_groups for p in g["params"]}
    assert len(chained.parts["surrogate"].param_groups) == 1
    run.save_checkpoint(tmp_path / "tuned.ckpt")
    resumed = Backbone()
    again = trainer(max_epochs=5, callbacks=[tuning()])
    again.fit(resumed, Rows(rows()), ckpt_path=tmp_path / "tuned.ckpt")
    assert [len(part.param_groups) for part in again.optimizers[0].parts.values()] == [2, 1]


@BOTH
def test_state_of_both_parts_resumes_exactly(kind, tmp_path):
    options = {"optimizer": SGD, "surrogate_optimizer": ADAM}

    def run(epochs, path=None):
        torch.manual_seed(epochs if path is None else 0)
        module = kind(REBAR(), **options)
        made = trainer(max_epochs=epochs)
        made.fit(module, Rows(rows()), ckpt_path=path)
        made.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return module

    run(2)
    saved = torch.load(tmp_path / "2.ckpt", weights_only=True)
    module = kind(REBAR(), **options)
    made = trainer(max_epochs=2)
    made.fit(module, Rows(rows()), ckpt_path=tmp_path / "2.ckpt")
    assert same(state(module)["optimizers"], saved["optimizer_states"])


class Counter(pl.Callback):
    """Counts batches up to a limit; both are its arguments, and both are in its state."""

    def __init__(self, count=0, limit=3):
        super().__init__()
        self.count, self.limit = count, limit

    def on_train_batch_end(self, *_):
        self.count += 1

    def state_dict(self):
        return {"count": self.count, "limit": self.limit}

    def load_state_dict(self, state):
        vars(self).update(state)


def test_options_given_anew_win_over_what_a_checkpoint_restores(tmp_path):
    first = fit(Subclass(Concrete(), optimizer=SGD), max_steps=2, callbacks=[Counter()])
    first.save_checkpoint(tmp_path / "first.ckpt")
    same, other = Counter(), Counter(limit=9)
    for counter, rate, temperature in ((same, 0.1, 0.5), (other, 0.5, 0.25)):
        module = Subclass(Concrete(temperature), optimizer=functools.partial(torch.optim.SGD, lr=rate))
        run = trainer(max_steps=3, callbacks=[counter])
        run.fit(module, Rows(rows()), ckpt_path=tmp_path / "first.ckpt")
        assert run.optimizers[0].param_groups[0]["lr"] == rate
        assert module.estimator.temperature.item() == pytest.approx(temperature)
    assert (same.count, same.limit, other.count, other.limit) == (3, 3, 3, 9)


def test_a_plain_module_stops_at_a_step_that_is_not_finite():
    class Breaks(Plain):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss + (math.nan if batch_idx == 3 else 0.0) * self.decoder.bias.sum()

    module = Breaks()
    with pytest.raises(FloatingPointError, match=r"at step 3 \(epoch 0, batch 3\)"):
        fit(module, callbacks=[FiniteTraining()])
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("size", [1e30, 1e18])
def test_a_gradient_whose_square_overflows_never_reaches_adam(size):
    class Huge(Tiny):
        def loss(self, batch):
            huge = size * 8 if self.batches_trained() == 2 else 0.0
            return super().loss(batch) + huge * self.decoder.bias[0]

    module = Huge(REBAR())
    if size > 1e18:
        with pytest.raises(FloatingPointError, match=r"(?s)at step 2 .*squares overflow: decoder.bias"):
            fit(module)
    else:
        fit(module)
    states = module.trainer.optimizers[0].state.values()
    assert all(tensor.isfinite().all() for entry in states for tensor in entry.values())


def test_optimizer_states_that_are_not_finite_are_not_saved(tmp_path):
    module = Tiny(REBAR())
    run = fit(module)
    run.optimizers[0].state[module.decoder.bias]["exp_avg_sq"][0] = torch.inf
    with pytest.raises(FloatingPointError, match=r"exp_avg_sq of parameter \d+ in the optimizer not finite"):
        run.save_checkpoint(tmp_path / "broken.ckpt")
    run.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    with torch.no_grad():
        module.decoder.bias[0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"decoder\.bias not finite"):
        run.save_checkpoint(tmp_path / "more.ckpt", weights_only=True)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.ckpt"]


def test_a_refused_step_leaves_running_statistics_as_they_were():
    class Breaks(Tiny):
        def loss(self, batch):
            costs = super().loss(batch)
            return costs * torch.inf if self.batches_trained() == 4 else costs

    averages = []
    for module, steps in (Breaks(REINFORCE()), 9), (Tiny(REINFORCE()), 4):
        torch.manual_seed(0)
        try:
            fit(module, max_steps=steps)
        except FloatingPointError:
            assert steps == 9
        averages.append(dict(module.estimator.named_buffers()))
    assert averages[0]
    assert same(*averages)


@pytest.mark.parametrize("hook", ["configure_callbacks", "on_save_checkpoint", "on_load_checkpoint"])
def test_a_missing_super_is_noticed(hook, tmp_path):
    answers = {"configure_callbacks": lambda self: []}
    Forgetful = type("Forgetful", (Tiny,), {hook: answers.get(hook, lambda self, checkpoint: None)})
    Forgetful.__dict__[hook].__wrapped__.__name__ = hook

    def use():
        fit(Tiny(REBAR())).save_checkpoint(tmp_path / "good.ckpt")
        run = fit(Forgetful(REBAR()))
        run.save_checkpoint(tmp_path / "any.ckpt")
        trainer(max_epochs=3).fit(Forgetful(REBAR()), Rows(rows()), ckpt_path=tmp_path / "good.ckpt")

    with pytest.raises(TypeError, match=rf"Forgetful\.{hook} must call super\(\)\.{hook}"):
        use()


def test_other_hooks_need_no_super():
    class Forgetful(Tiny):
        def on_fit_start(self): ...
        def on_train_start(self): ...
        def on_train_batch_start(self, batch, batch_idx): ...
        def on_before_optimizer_step(self, optimizer): ...
        def on_train_batch_end(self, outputs, batch, batch_idx): ...
        def on_train_epoch_end(self): ...
        def on_validation_batch_start(self, batch, batch_idx): ...
        def on_validation_batch_end(self, outputs, batch, batch_idx): ...
        def setup(self, stage): ...

    results = []
    for kind in Tiny, Forgetful:
        torch.manual_seed(0)
        module = kind(REBAR())
        run = trainer(max_epochs=2)
        run.fit(module, Rows(rows()), Rows(rows(seed=1)))
        results.append((module.state_dict(), run.callback_metrics["val/loss"]))
    assert same(*results)


def test_a_module_can_be_copied_at_any_time():
    copies = []

    class Copies(pl.Callback):
        def on_validation_batch_end(self, trainer, pl_module, *_):
            copies.append(copy.deepcopy(pl_module))

        def on_train_batch_end(self, trainer, pl_module, *_):
            copies.append(pickle.loads(pickle.dumps(copy.deepcopy(pl_module).state_dict())))

    run = trainer(max_epochs=1, callbacks=[Copies()])
    run.fit(Tiny(REBAR()), Rows(rows()), Rows(rows(seed=1)))
    assert len(copies) > 6
    fit(copies[0])


def test_pruned_weights_and_weight_norm_train():
    class Normed(Tiny):
        def __init__(self):
            super().__init__(REBAR())
            self.decoder = nn.utils.parametrizations.weight_norm(self.decoder)
            prune.l1_unstructured(self.encoder, "weight", amount=0.5)

    module = Normed()
    before = module.decoder.weight.detach().clone()
    fit(module)
    assert not torch.equal(before, module.decoder.weight)
    assert (module.encoder.weight == 0).sum() == 6


def test_a_compiled_module_trains_as_the_module_does():
    results = []
    for compiled in False, True:
        torch.manual_seed(0)
        module = Tiny(REBAR())
        # This backend needs no compiler, and like the others has no derivative of a derivative.
        fit(torch.compile(module, backend="aot_eager") if compiled else module, max_steps=3)
        results.append(module.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-5, atol=1e-6)


def test_the_users_generators_are_those_of_a_plain_module():
    drawn = []

    class Draws(pl.Callback):
        def on_train_batch_end(self, *_):
            drawn[-1].append(torch.rand(1).item())

        def on_train_epoch_start(self, *_):
            drawn[-1].append(torch.rand(1).item())

    class Without(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4))

        def training_step(self, batch, batch_idx):
            return (batch - self.weight).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    for make in Without, lambda: Tiny(REBAR()):
        drawn.append([])
        module = make()
        pl.seed_everything(0, verbose=False)
        fit(module, callbacks=[Draws()])
    assert drawn[0] == drawn[1]


def test_manual_seed_changes_the_noise_and_repeats_it():
    def train(seed):
        module = Tiny(REBAR())
        pl.seed_everything(0, verbose=False)
        torch.manual_seed(seed)
        fit(module)
        return module.state_dict()

    assert same(train(1), train(1))
    assert not same(train(1), train(2))


@pytest.mark.parametrize("make", [REINFORCE, REBAR, RELAX])
def test_half_precision_with_a_scaler_gives_the_gradients_of_full_precision(make):
    """16-mixed on the CPU: the scaler starts so high that it has to skip steps, and does so for both parts."""

    def train(**options):
        torch.manual_seed(0)
        seen, module = Gradients(), Tiny(make(), optimizer=SGD, surrogate_optimizer=SGD)
        fit(module, max_steps=6, callbacks=[seen], **options)
        return seen.steps, module

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    half, _ = train(plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    full, _ = train()
    for name, gradient in full[0].items():
        difference = (half[0][name] - gradient).norm() / gradient.norm().clamp_min(1e-3)
        assert difference < 0.01, name
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-18)
    steps, module = train(plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert 0 < len(steps) < 6  # some were skipped
    assert all(p.isfinite().all() for p in module.parameters())
