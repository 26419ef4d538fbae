"""Settings that follow a schedule: curves, estimators that take them, loops and Trainers that advance them."""

import copy
import functools
import math
import pickle

import pytest
import torch
from modules.tiny import Recorder, Rows, Tiny, rows, trainer
from torch.distributions import Bernoulli, Independent
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

from lightning_estimators.cli import EstimatorCLI
from lightning_estimators.estimators import REBAR, RELAX, Concrete, GumbelRao, HardConcrete, ReinMax, RelaxedREBAR
from lightning_estimators.modules.scheduled import ScheduledSettings
from lightning_estimators.networks import Surrogate
from lightning_estimators.schedules import (
    ConstantSchedule,
    CosineSchedule,
    ExponentialSchedule,
    LinearSchedule,
    TorchSchedule,
    advance_schedules,
)

ANNEALED = {
    "Concrete": lambda schedule: Concrete(schedule),
    "GumbelRao": lambda schedule: GumbelRao(schedule),
    "HardConcrete": lambda schedule: HardConcrete(schedule),
    "ReinMax": lambda schedule: ReinMax(schedule),
    "REBAR": lambda schedule: REBAR(schedule, learn_temperature=False),
    "RELAX": lambda schedule: RELAX(Surrogate([3]), schedule, learn_temperature=False),
    "RelaxedREBAR": lambda schedule: RelaxedREBAR(Surrogate([3]), schedule, learn_temperature=False),
}


def test_curves():
    steps = range(0, 15, 5)
    assert [LinearSchedule(2.0, 1.0, steps=10).at(t) for t in steps] == [2.0, 1.5, 1.0]
    exponential = ExponentialSchedule(1.0, 0.25, steps=10)
    assert [exponential.at(t) for t in steps] == pytest.approx([1.0, 0.5, 0.25])
    assert exponential.at(4) / exponential.at(3) == pytest.approx(exponential.at(9) / exponential.at(8))
    cosine = CosineSchedule(1.0, 0.0, steps=10)
    assert [cosine.at(t) for t in range(10)] == pytest.approx([(1 + math.cos(math.pi * t / 10)) / 2 for t in range(10)])
    assert [ConstantSchedule(0.3).at(t) for t in steps] == [0.3] * 3
    for schedule in (LinearSchedule(2.0, 1.0, 10), exponential, cosine):
        assert schedule.at(10) == schedule.at(1000) == schedule.end


def test_the_curve_of_a_scheduler_of_torch_is_that_of_the_learning_rate():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=0.7)
    scheduler = CosineAnnealingLR(optimizer, T_max=7)
    schedule = TorchSchedule(0.7, functools.partial(CosineAnnealingLR, T_max=7))
    for step in range(20):
        assert schedule.at(step) == optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
    assert pickle.loads(pickle.dumps(schedule)).at(30) == copy.deepcopy(schedule).at(30) == schedule.at(30)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearSchedule(1.0, 0.5, steps=0), "at least 1 step, got 0"),
        (lambda: CosineSchedule(1.0, math.nan, steps=5), "finite end"),
        (lambda: ExponentialSchedule(1.0, 0.0, steps=5), "positive numbers, got 1.0 and 0.0.*LinearSchedule"),
        (lambda: ConstantSchedule(math.inf), "finite constant"),
        (lambda: TorchSchedule(1.0, ReduceLROnPlateau), "ReduceLROnPlateau, which follows a metric"),
        (lambda: Concrete(LinearSchedule(1.0, 0.0, steps=5)), "Concrete needs a positive, finite temperature, got 0.0"),
        (
            lambda: Concrete(LinearSchedule(1.0, 0.5, 5), learn_temperature=True),
            "follows a schedule.*learn_temperature",
        ),
        (lambda: REBAR(LinearSchedule(1.0, 0.5, 5)), "REBAR follows a schedule.*learn_temperature=False"),
    ],
)
def test_what_cannot_be_followed_is_refused_when_it_is_built(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ANNEALED)
def test_a_plain_loop_advances_by_one_line(name):
    estimator = ANNEALED[name](ExponentialSchedule(1.0, 0.25, steps=4))
    model = torch.nn.ModuleList([estimator, copy.deepcopy(estimator)])
    found = [estimator.temperature.item()]
    for _ in range(5):
        advance_schedules(model)
        found.append(estimator.temperature.item())
        assert all(e.diagnostics()["temperature"] == estimator.temperature for e in model)
    assert found == pytest.approx([0.25 ** (t / 4) for t in range(4)] + [0.25, 0.25])
    assert "ExponentialSchedule(start=1.0, end=0.25, steps=4)" in repr(estimator)
    assert not estimator.log_temperature.requires_grad


@pytest.mark.parametrize("name", ANNEALED)
def test_the_temperature_enters_the_estimate(name):
    found = []
    for given in (LinearSchedule(1.0, 0.2, steps=2), 0.6):
        torch.manual_seed(0)
        estimator = ANNEALED[name](given)
        q = Independent(Bernoulli(logits=(logits := torch.ones(5, 3, requires_grad=True))), 1)
        estimator.prepare(q)
        advance_schedules(estimator)
        torch.manual_seed(1)
        estimator(q, lambda z: torch.sin(3 * z).sum(-1)).sum().backward()
        found.append(logits.grad)
    torch.testing.assert_close(*found)


def test_a_state_dict_keeps_the_position():
    estimator = Concrete(LinearSchedule(1.0, 0.5, steps=10))
    for _ in range(4):
        advance_schedules(estimator)
    other = Concrete(LinearSchedule(1.0, 0.5, steps=10))
    other.load_state_dict(estimator.state_dict())
    assert other.temperature == estimator.temperature
    advance_schedules(other)
    assert other.temperature.item() == pytest.approx(0.75)


def test_a_scheduled_temperature_is_not_set_by_hand_or_learned():
    estimator = Concrete(LinearSchedule(1.0, 0.5, steps=10))
    with pytest.raises(ValueError, match=r"follows LinearSchedule.*set it by hand"):
        estimator.temperature = 0.3
    with pytest.raises(ValueError, match="follows a schedule"):
        estimator.learn_temperature = True


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_trainer_advances_once_per_optimizer_step_and_logs_the_temperature_in_use(tmp_path, accumulate):
    recorder = Recorder()
    module = Tiny(Concrete(LinearSchedule(1.0, 0.4, steps=6)))
    run = trainer(tmp_path, max_epochs=1, logger=recorder, accumulate_grad_batches=accumulate)
    run.fit(module, Rows(rows(batches=6)))
    assert run.global_step == 6 // accumulate
    assert module.estimator.temperature.item() == pytest.approx(1 - 0.1 * run.global_step)
    logged = [
        m["estimator/estimator/temperature"] for _, m in recorder.logged if "estimator/estimator/temperature" in m
    ]
    in_use = [1 - 0.1 * t for t in range(run.global_step)]
    assert logged == pytest.approx(in_use)


def test_a_run_that_is_resumed_goes_on_and_one_that_begins_begins(tmp_path):
    def build():
        return Tiny(Concrete(LinearSchedule(1.0, 0.4, steps=12)))

    first = build()
    run = trainer(tmp_path, max_epochs=1)
    run.fit(first, Rows(rows(batches=3)))
    run.save_checkpoint(tmp_path / "a.ckpt")
    second = build()
    trainer(tmp_path, max_epochs=2).fit(second, Rows(rows(batches=3)), ckpt_path=tmp_path / "a.ckpt")
    assert second.estimator.temperature.item() == pytest.approx(1 - 0.6 * 6 / 12)
    trainer(tmp_path, max_steps=1).fit(second, Rows(rows(batches=3)))
    assert second.estimator.temperature.item() == pytest.approx(1 - 0.6 / 12)


def test_the_callback_serves_a_module_of_lightning_alone(tmp_path):
    import lightning.pytorch as pl

    class Plain(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.logits = torch.nn.Parameter(torch.zeros(3))
            self.estimator = Concrete(LinearSchedule(1.0, 0.5, steps=2))

        def training_step(self, batch):
            q = Independent(Bernoulli(logits=self.logits.expand(8, 3)), 1)
            return self.estimator(q, lambda z: z.sum(-1)).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    plain = Plain()
    trainer(tmp_path, max_epochs=1, callbacks=[ScheduledSettings()]).fit(plain, DataLoader(torch.zeros(1, 8)))
    assert plain.estimator.temperature.item() == pytest.approx(0.75)


QUIET = ["--trainer.accelerator=cpu", "--trainer.logger=false"]


def test_a_schedule_from_the_command_line_and_from_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(
        "model:\n  estimator:\n    class_path: Concrete\n    init_args:\n      num_samples: 2\n"
        "      coupling: antithetic\n      temperature:\n"
        "        class_path: lightning_estimators.schedules.ExponentialSchedule\n"
        "        init_args: {start: 1.0, end: 0.1, steps: 100}\n"
    )
    (estimator,) = EstimatorCLI([*QUIET, "--config=c.yaml"], run=False).model.estimators
    assert estimator.temperature_schedule.at(50) == pytest.approx(math.sqrt(0.1))
    assert (estimator.num_samples, estimator.coupling) == (2, "antithetic")
    written = ["--model.estimator=Concrete", "--model.estimator.temperature=LinearSchedule"]
    settings = {"start": 1.0, "end": 0.5, "steps": 10}
    written += [f"--model.estimator.temperature.{name}={value}" for name, value in settings.items()]
    (estimator,) = EstimatorCLI([*QUIET, *written], run=False).model.estimators
    assert estimator.temperature_schedule.at(5) == 0.75
    again = Concrete(**{"temperature": TorchSchedule(1.0, functools.partial(StepLR, step_size=3))})
    assert again.configuration()["init_args"]["temperature"]["class_path"].endswith("schedules.TorchSchedule")
