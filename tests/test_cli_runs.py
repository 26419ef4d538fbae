"""The command line over several runs: which checkpoint is meant, and what of it counts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_estimators.cli import EstimatorCLI, main
from lightning_estimators.commandline.run_logger import RunLogger
from lightning_estimators.datamodules import Digits
from lightning_estimators.estimators import REBAR
from lightning_estimators.modules import DiscreteLatentModel

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
SMALL = [*QUIET, "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"]
FIT = ["fit", *SMALL, "--trainer.limit_train_batches=2", "--trainer.max_epochs=1", "--model.num_latents=[4]"]
TEST = ["test", *SMALL, "--model.test_samples=1"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def checkpoint_of_test(*options):
    return Path(EstimatorCLI([*TEST, *options]).config.test.ckpt_path)


# Which checkpoint


def test_runs_are_told_apart_by_their_beginning_not_by_the_clock_of_files():
    EstimatorCLI([*FIT, "--trainer.max_epochs=2"])
    newer = Path(EstimatorCLI(FIT).trainer.checkpoint_callback.last_model_path)
    assert newer.parts[-3] == "version_1"
    os.utime(newer, (1, 1))
    assert checkpoint_of_test("--ckpt_path=last") == newer  # fewer steps, older file, but begun later
    shutil.copytree("lightning_logs", "copy/lightning_logs")
    assert checkpoint_of_test("--ckpt_path=last", "--trainer.default_root_dir=copy").parts[-4:-2] == (
        "lightning_logs",
        "version_1",
    )


def test_a_resumed_run_is_newer_whatever_the_clock_says():
    first = EstimatorCLI(FIT).trainer.checkpoint_callback.last_model_path
    ahead = torch.load(first, weights_only=True)
    ahead["lightning_estimators"]["started"] += 10**18
    torch.save(ahead, first)
    second = EstimatorCLI([*FIT, "--ckpt_path=last", "--trainer.max_epochs=2"])
    assert checkpoint_of_test("--ckpt_path=last") == Path(second.trainer.checkpoint_callback.last_model_path)


def test_last_is_where_this_configuration_writes():
    EstimatorCLI(FIT)
    configurations = {
        "logger": {"logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "logs", "name": "a/b"}}},
        "version": {"logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "logs", "version": "mine"}}},
        "folder": {"callbacks": {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "own", "save_last": True}}},
        "none": {"logger": False},
    }
    written = {}
    for name, trainer in configurations.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump({"trainer": trainer}))
        run = EstimatorCLI([*FIT, f"--config={name}.yaml"])
        written[name] = Path(run.trainer.checkpoint_callback.last_model_path).absolute()
    for name, path in written.items():
        assert checkpoint_of_test(f"--config={name}.yaml", "--ckpt_path=last") == path


def test_a_home_folder_is_the_same_for_writing_and_finding(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run = EstimatorCLI([*FIT, "--trainer.default_root_dir=~/runs"])
    written = Path(run.trainer.checkpoint_callback.last_model_path)
    assert written.is_relative_to(tmp_path / "home/runs")
    assert checkpoint_of_test("--ckpt_path=last", "--trainer.default_root_dir=~/runs") == written
    EstimatorCLI([*FIT, "--checkpoint.dirpath=~/own"])
    assert checkpoint_of_test("--ckpt_path=last", "--checkpoint.dirpath=~/own") == tmp_path / "home/own/last.ckpt"


def test_best_is_found_although_its_name_makes_folders_and_they_were_moved():
    run = EstimatorCLI([*FIT, "--checkpoint.monitor=val/loss", "--checkpoint.filename={step}-{val/loss:.2f}"])
    best = Path(run.trainer.checkpoint_callback.best_model_path)
    assert checkpoint_of_test("--ckpt_path=best") == best
    os.rename("lightning_logs", "elsewhere")
    assert checkpoint_of_test("--ckpt_path=best").relative_to(Path("elsewhere").absolute()) == best.relative_to(
        Path("lightning_logs").absolute()
    )


def test_a_damaged_last_is_passed_over_and_only_damaged_ones_are_refused(capsys):
    first = Path(EstimatorCLI(FIT).trainer.checkpoint_callback.last_model_path)
    second = Path(EstimatorCLI(FIT).trainer.checkpoint_callback.last_model_path)
    second.write_bytes(second.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="Passed over: .*version_1.*damaged"):
        assert checkpoint_of_test("--ckpt_path=last") == first
    first.write_bytes(b"")
    with pytest.raises(SystemExit), pytest.warns(UserWarning, match="Passed over"):
        main([*FIT, "--ckpt_path=last"])
    assert "damaged" in capsys.readouterr().err


def test_one_line_begins_and_resumes():
    begun = EstimatorCLI([*FIT, "--ckpt_path=last"])
    assert begun.trainer.ckpt_path is None
    resumed = EstimatorCLI([*FIT, "--ckpt_path=last", "--trainer.max_epochs=2"])
    assert resumed.trainer.ckpt_path == begun.trainer.checkpoint_callback.last_model_path
    assert resumed.trainer.global_step == 4


def test_fit_never_resumes_from_a_run_that_writes_elsewhere():
    EstimatorCLI(FIT)
    assert EstimatorCLI([*FIT, "--ckpt_path=last", "--checkpoint.dirpath=own"]).trainer.ckpt_path is None


# What of it counts


def test_options_win_over_files_in_any_order():
    Path("c.yaml").write_text("model: {init_args: {num_latents: [3], test_samples: 9}}\n")
    words = ["--model.num_latents=[5]", "--config=c.yaml", "--model.hidden", "[]"]
    built = EstimatorCLI([*QUIET, *words], run=False)
    assert (built.model.event_shapes, built.model.test_samples) == ([(5,)], 9)
    EstimatorCLI([*FIT, "--model.num_latents=[5]", "--config", "c.yaml"])
    assert EstimatorCLI(["test", *SMALL, "--ckpt_path=last"]).model.event_shapes == [(5,)]


def test_built_but_not_run():
    built = EstimatorCLI(["--model.num_latents=[7]", "--trainer.max_steps=2", *SMALL], run=False)
    assert (built.trainer.global_step, built.model.event_shapes) == (0, [(7,)])
    built.trainer.fit(built.model, built.datamodule)
    assert built.trainer.global_step == 2
    assert isinstance(built.datamodule, Digits)


def test_the_environment_counts_between_checkpoint_and_files(monkeypatch):
    run = EstimatorCLI([*FIT, "--seed_everything=3"])
    path = run.trainer.checkpoint_callback.last_model_path
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    monkeypatch.setenv("PL_TEST__CKPT_PATH", path)
    monkeypatch.setenv(
        "PL_TEST__DATA", "{class_path: lightning_estimators.datamodules.Digits, init_args: {eval_batch_size: 30}}"
    )
    monkeypatch.setenv("PL_TEST__SEED_EVERYTHING", "5")
    cli = EstimatorCLI(TEST)
    assert (cli.config.test.ckpt_path, cli.config.test.seed_everything) == (path, 5)
    assert (cli.model.event_shapes, cli.datamodule.eval_batch_size) == ([(4,)], 30)
    assert EstimatorCLI([*TEST, "--seed_everything=6"]).config.test.seed_everything == 6


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"MODEL__ESTIMATOR": "RELAX", "MODEL__NUM_LATENTS": "[5]"}, ("RELAX", (5,), 100)),
        ({"MODEL": "{class_path: DiscreteLatentModel, init_args: {estimator: RELAX}}"}, ("RELAX", (200,), 100)),
        ({"DATA": "{class_path: Digits, init_args: {batch_size: 7}}", "MODEL__NUM_LATENTS": "[5]"}, ("REBAR", (6,), 7)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_the_environment_names_classes_and_their_options(monkeypatch, environment, told):
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    for name, value in environment.items():
        monkeypatch.setenv(f"PL_{name}", value)
    later = ["--model.num_latents=[6]"] if told[1] == (6,) else []
    built = EstimatorCLI([*QUIET, *later], run=False)
    (estimator,), (shape,) = built.model.estimators, built.model.event_shapes
    assert (type(estimator).__name__, shape, built.datamodule.batch_size) == told
    assert all(os.environ[f"PL_{name}"] == value for name, value in environment.items())  # for other processes


def test_a_seed_that_is_drawn_is_noted():
    seeds = []
    for _ in range(2):
        os.environ.pop("PL_GLOBAL_SEED", None)
        run = EstimatorCLI([*FIT, "--seed_everything=true"])
        seeds.append(run.config.fit.seed_everything)
        assert yaml.safe_load(Path(run.trainer.log_dir, "config.yaml").read_text())["seed_everything"] == seeds[-1]
    assert seeds[0] != seeds[1]
    assert EstimatorCLI([*TEST, "--ckpt_path=last"]).config.test.seed_everything == seeds[1]


PROJECT = """
from lightning_estimators.estimators import GradientEstimator
from lightning_estimators.modules import DiscreteLatentModel
class {name}(DiscreteLatentModel):
    def __init__(self, estimator: GradientEstimator, image_shape: tuple[int, int, int], width: int = 3):
        super().__init__(estimator, image_shape, num_latents=[width], test_samples=1)
"""


def test_a_class_that_moved_or_was_renamed(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    for module, name in {"before_move": "Mine", "after_move": "Mine", "renamed": "Yours"}.items():
        Path(f"{module}.py").write_text(PROJECT.format(name=name))
    fit = [word for word in FIT if "num_latents" not in word]
    run = EstimatorCLI([*fit, "--model=before_move.Mine", "--model.estimator=REBAR", "--model.width=6"])
    Path("before_move.py").unlink()
    del sys.modules["before_move"]
    for path in ("after_move.Mine", "renamed.Yours"):
        cli = EstimatorCLI(["test", *SMALL, "--ckpt_path=last", f"--model={path}"])
        assert (f"{type(cli.model).__module__}.{type(cli.model).__name__}", cli.model.event_shapes) == (path, [(6,)])
        kind = type(cli.model)
        loaded = kind.load_from_checkpoint(run.trainer.checkpoint_callback.last_model_path)
        assert type(loaded) is kind
    with pytest.raises(SystemExit):
        main(["test", *SMALL, "--ckpt_path=last"])
    assert "before_move.Mine" in capsys.readouterr().err


def test_what_data_could_not_say_the_checkpoint_remembers(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    Path("shapeless.py").write_text(
        "import lightning.pytorch as pl, torch\n"
        "class Shapeless(pl.LightningDataModule):\n"
        "    def __init__(self, count: int = 8):\n"
        "        super().__init__()\n"
        "        self.count = count\n"
        "    def loader(self): return torch.utils.data.DataLoader(torch.ones(self.count, 1, 4, 4), batch_size=4)\n"
        "    train_dataloader = val_dataloader = test_dataloader = loader\n"
    )
    EstimatorCLI(
        [*FIT, "--data=shapeless.Shapeless", "--data.count=12", "--model.image_shape=[1,4,4]", "--model.data_mean=0.5"]
    )
    cli = EstimatorCLI([*TEST, "--ckpt_path=last"])
    assert (cli.model.image_shape, cli.datamodule.count) == ((1, 4, 4), 12)


def test_given_options_of_a_callback_win_over_its_saved_state():
    stop = ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
    EstimatorCLI([*FIT, *stop, "--trainer.callbacks.patience=2"])
    resume = [*FIT, *stop, "--ckpt_path=last", "--trainer.max_epochs=2"]
    cli = EstimatorCLI([*resume, "--trainer.callbacks.patience=7"])
    (stopping,) = (c for c in cli.trainer.callbacks if isinstance(c, pl.callbacks.EarlyStopping))
    assert stopping.patience == 7
    assert stopping.best_score < 1e9  # what it has seen is still restored


def test_changed_options_win_in_both_parts_and_nothing_else_does():
    options = ["--model.lr_scheduler=ExponentialLR", "--model.lr_scheduler.gamma=0.5"]
    EstimatorCLI([*FIT, *options, "--model.surrogate_optimizer.lr=0.25"])
    resume = [*FIT, "--ckpt_path=last", "--trainer.max_epochs=2", "--trainer.limit_train_batches=2"]
    cli = EstimatorCLI([*resume, "--model.surrogate_optimizer.lr=0.125", "--model.optimizer.lr=0.04"])
    parts = cli.trainer.optimizers[0].parts
    assert parts["surrogate"].param_groups[0]["lr"] == 0.125
    assert parts["model"].param_groups[0]["lr"] == pytest.approx(0.04 * 0.5**2)


# What is written


def test_two_model_checkpoints_keep_their_files():
    Path("c.yaml").write_text(
        "trainer: {callbacks: [{class_path: ModelCheckpoint, init_args: {every_n_train_steps: 1, save_top_k: -1}}]}\n"
    )
    run = EstimatorCLI([*FIT, "--config=c.yaml", "--checkpoint.filename=mine", "--checkpoint.monitor=val/loss"])
    folder = Path(run.trainer.log_dir, "checkpoints")
    assert {"epoch=0-step=1.ckpt", "epoch=0-step=2.ckpt", "mine.ckpt", "last.ckpt"} <= set(os.listdir(folder))
    alone = EstimatorCLI([*FIT, "--config=c.yaml"])  # nobody asked for another
    assert set(os.listdir(Path(alone.trainer.log_dir, "checkpoints"))) == {"epoch=0-step=1.ckpt", "epoch=0-step=2.ckpt"}
    assert checkpoint_of_test("--config=c.yaml", "--ckpt_path=last").name == "epoch=0-step=2.ckpt"


def test_a_logger_without_a_folder(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    Path("service.py").write_text(
        "from lightning.pytorch.loggers import Logger\n"
        "class Service(Logger):\n"
        "    name, version, told = 'service', 'run', {}\n"
        "    def log_metrics(self, metrics, step=None): pass\n"
        "    def log_hyperparams(self, params, *args, **kwargs): self.told.update(params)\n"
    )
    run = EstimatorCLI([*FIT, "--trainer.logger=service.Service", "--model.estimator=RELAX"])
    assert (
        checkpoint_of_test("--ckpt_path=last", "--trainer.logger=service.Service")
        == Path("service/run/checkpoints/last.ckpt").absolute()
    )
    told = run.trainer.logger.told
    assert (told["estimator"], told["optimizer"], told["optimizer.lr"]) == ("RELAX", "Adam", 0.01)
    assert (told["num_latents"], told["data"], told["batch_size"]) == ("[4]", "Digits", 100)
    assert all(isinstance(value, bool | int | float | str) for value in told.values())


def test_hyper_parameters_reach_tensorboards_table():
    run = EstimatorCLI(FIT)
    metadata = EventAccumulator(run.trainer.log_dir).Reload().SummaryMetadata("_hparams_/session_start_info")
    assert b"estimator" in metadata.plugin_data.content
    assert b"batch_size" in metadata.plugin_data.content
    assert b"_instantiator" not in metadata.plugin_data.content


def test_an_argument_that_model_and_data_share_is_told_twice(tmp_path):
    class Seeded(DiscreteLatentModel):
        def __init__(self, seed: int):
            super().__init__(REBAR(), Digits.image_shape, num_latents=[3])

    logger = pl.loggers.CSVLogger(tmp_path)
    trainer = pl.Trainer(max_steps=1, logger=logger, limit_val_batches=0, accelerator="cpu", enable_progress_bar=False)
    trainer.fit(Seeded(seed=7), Digits(seed=3))
    written = yaml.safe_load(Path(logger.log_dir, "hparams.yaml").read_text())
    assert (written["model.seed"], written["seed"]) == (7, 3)


def test_a_folder_belongs_to_one_run(tmp_path):
    loggers = [RunLogger(tmp_path) for _ in range(3)]
    assert [logger.version for logger in loggers] == [0, 1, 2]
    assert RunLogger(tmp_path, version="given").version == "given"


def test_unpickling_is_what_the_option_says(monkeypatch, tmp_path):
    path = Path(EstimatorCLI(FIT).trainer.checkpoint_callback.last_model_path)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["mine"] = Path("an object")
    torch.save(checkpoint, path)
    with pytest.raises(SystemExit):
        main([*TEST, f"--ckpt_path={path}"])
    for command in (TEST, [*FIT, "--trainer.max_epochs=2"]):
        EstimatorCLI([*command, f"--ckpt_path={path}", "--weights_only=false"])


# Configuration files


def test_packaged_configurations_are_found_by_name_and_own_ones_first(capsys):
    built = EstimatorCLI([*QUIET, "--config=gamma_toy"], run=False)
    assert type(built.model).__name__ == "GammaToyModel"
    Path("gamma_toy.yaml").write_text("model: {class_path: ToyModel, init_args: {estimator: {class_path: REBAR}}}\n")
    assert type(EstimatorCLI([*QUIET, "-c", "gamma_toy"], run=False).model).__name__ == "ToyModel"
    with pytest.raises(SystemExit):
        main(["fit", "--config", "gamma_to"])
    assert "gamma_to" in capsys.readouterr().err


def test_a_part_in_a_file_of_its_own(monkeypatch, tmp_path):
    Path("jobs/parts").mkdir(parents=True)
    Path("jobs/parts/model.yaml").write_text(
        "class_path: DiscreteLatentModel\ninit_args: {estimator: {class_path: REBAR}, num_latents: [7]}\n"
    )
    Path("jobs/run.yaml").write_text(
        "model: parts/model.yaml\ndata: {class_path: MNIST, init_args: {batch_size: 50}}\n"
    )
    built = EstimatorCLI([*QUIET, "--config=jobs/run.yaml", "--data=Digits", "--model.estimator=RELAX"], run=False)
    assert (built.model.event_shapes, built.datamodule.batch_size) == ([(7,)], 50)


@pytest.mark.parametrize("written", ["SequentialLR", "torch.optim.lr_scheduler.SequentialLR", "SequentialSchedule"])
def test_warm_up_then_decay_in_a_file(written):
    Path("c.yaml").write_text(
        "model:\n  class_path: DiscreteLatentModel\n  init_args:\n    estimator: {class_path: REBAR}\n"
        "    num_latents: [3]\n    optimizer: {class_path: SGD, init_args: {lr: 1.0}}\n"
        f"    lr_scheduler:\n      class_path: {written}\n"
        "      init_args:\n        milestones: [2]\n        schedulers:\n"
        "          - {class_path: LinearLR, init_args: {start_factor: 0.5, total_iters: 2}}\n"
        "          - {class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 1}}\n"
    )
    fit = ["fit", *SMALL, "--config=c.yaml", "--trainer.limit_train_batches=1"]
    rates = []
    for epochs in (1, 2, 3):
        cli = EstimatorCLI([*fit, f"--trainer.max_epochs={epochs}", "--ckpt_path=last"])
        rates.append(cli.trainer.optimizers[0].parts["model"].param_groups[0]["lr"])
    assert rates == pytest.approx([0.75, 1.0, 0.1])
    DiscreteLatentModel.load_from_checkpoint(cli.trainer.checkpoint_callback.last_model_path)


def test_schedules_at_once_in_a_file():
    Path("c.yaml").write_text(
        "model:\n  class_path: DiscreteLatentModel\n  init_args:\n    estimator: {class_path: REBAR}\n"
        "    optimizer: {class_path: SGD, init_args: {lr: 1.0}}\n"
        "    lr_scheduler:\n      class_path: torch.optim.lr_scheduler.ChainedScheduler\n"
        "      init_args:\n        schedulers:\n"
        "          - {class_path: LinearLR, init_args: {start_factor: 0.5, total_iters: 1}}\n"
        "          - {class_path: ExponentialLR, init_args: {gamma: 0.25}}\n"
    )
    cli = EstimatorCLI([*FIT, "--config=c.yaml"])
    assert cli.trainer.optimizers[0].parts["model"].param_groups[0]["lr"] == pytest.approx(0.25)


def test_a_plateau_by_its_short_name():
    cli = EstimatorCLI([*FIT, "--model.lr_scheduler=ReduceLROnPlateau", "--model.lr_scheduler.monitor=val/loss"])
    assert cli.trainer.lr_scheduler_configs[0].monitor == "val/loss"
    with pytest.raises(SystemExit):
        main([*FIT, "--model.lr_scheduler", "ReduceLROnPlateau"])


def test_a_file_for_all_subcommands_before_the_subcommand():
    Path("all.yaml").write_text("fit: {model: {init_args: {num_latents: [6]}}, trainer: {max_epochs: 1}}\n")
    fit = [word for word in FIT if word.startswith("--trainer.")]
    assert EstimatorCLI(["--config=all.yaml", "fit", *fit]).model.event_shapes == [(6,)]


# What cannot work is said in a line


def test_weights_alone_cannot_be_resumed(capsys):
    EstimatorCLI([*FIT, "--checkpoint.save_weights_only=true"])
    with pytest.raises(SystemExit):
        main([*FIT, "--ckpt_path=last"])
    assert "holds weights only" in capsys.readouterr().err
    main([*TEST, "--ckpt_path=last"])


def test_a_logger_that_is_not_installed(capsys):
    with pytest.raises(SystemExit):
        main([*FIT, "--trainer.logger=CometLogger"])
    assert "comet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (bytes(range(256)), ""),
        (b"a: &a [*a]", "alias"),
        (b"a: &a {b: *a}", "alias"),
        (
            b"a0: &a0 [1,1,1,1,1,1,1,1,1]\n"
            + b"".join(b"a%d: &a%d [%s]\n" % (i, i, b",".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 9)),
            "alias",
        ),
        (b"model: [", ""),
        (b"- 1\n- 2\n", ""),
        (b"seed_everything: {a: 1}", "seed_everything"),
        (b"model: {class_path: DiscreteLatentModel, init_args: hello}", "init_args"),
    ],
    ids=["binary", "recursive list", "recursive mapping", "bomb", "syntax", "list", "type", "no options by name"],
)
def test_files_that_are_no_configuration(capsys, content, told):
    Path("c.yaml").write_bytes(content)
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config=c.yaml"])
    message = capsys.readouterr().err
    assert exit_.value.code == 2
    assert "Traceback" not in message
    assert told in message
    assert len(message) < 1500


@pytest.mark.parametrize(
    ("name", "value"), [("RANK", "x"), ("WORLD_SIZE", "many"), ("WORLD_SIZE", "0"), ("LOCAL_RANK", "-1")]
)
def test_nonsense_of_a_launcher(capsys, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as exit_:
        main([*FIT])
    assert exit_.value.code == 2
    assert name in capsys.readouterr().err


def test_a_current_folder_that_was_deleted(capsys):
    Path("gone").mkdir()
    os.chdir("gone")
    os.rmdir("../gone")
    with pytest.raises(SystemExit) as exit_:
        main([*FIT])
    assert exit_.value.code == 2
    assert "current folder" in capsys.readouterr().err


def test_a_debugging_user_sees_where_it_was_raised(monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEBUG", "true")
    with pytest.raises(ValueError, match="at least one layer"):
        main(["fit", *SMALL, "--model.num_latents=[]"])


def test_two_processes_train_from_the_command_line(tmp_path):
    """They share one folder, and each of them passes through the logger."""
    options = "--trainer.max_epochs=1 --trainer.limit_train_batches=2 --trainer.limit_val_batches=1 --trainer.devices=2"
    words = [*options.split(), "--trainer.strategy=ddp", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1"]
    command = [sys.executable, "-m", "lightning_estimators", "fit", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in (tmp_path / "lightning_logs").iterdir()] == ["version_0"]
    assert (tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt").is_file()
