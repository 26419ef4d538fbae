"""The command line, called as users call it, in an empty folder."""

import os
import runpy
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_estimators.cli import EstimatorCLI, main
from lightning_estimators.datamodules import MNIST, Digits
from lightning_estimators.estimators import REBAR, RELAX, Concrete
from lightning_estimators.modules import DiscreteLatentModel, ToyModel

CONFIGS = Path(__file__).parents[1] / "lightning_estimators" / "configs"
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
SMALL = [*QUIET, "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"]
TWO_STEPS = [*SMALL, "--trainer.max_steps=2"]
BARE = ["--trainer.logger=false", "--trainer.enable_checkpointing=false"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def learning_rates(cli, which=0):
    return [group["lr"] for group in list(cli.trainer.optimizers[0].parts.values())[which].param_groups]


def refused(capsys, *args):
    """The message of a command that is refused with status 2 and no traceback."""
    with pytest.raises(SystemExit) as exit_:
        main(list(args))
    assert exit_.value.code == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    (message,) = (line for line in told.splitlines() if line.startswith("error: "))
    return message


# The default job


def test_fit_without_options_is_the_digits_job():
    default = EstimatorCLI(["fit", *SMALL, "--trainer.fast_dev_run=1"])
    written = EstimatorCLI(["fit", *SMALL, "--trainer.fast_dev_run=1", "--config", str(CONFIGS / "digits.yaml")])
    assert isinstance(default.model.estimators[0], REBAR)
    assert isinstance(default.datamodule, Digits)
    for name in ("seed_everything", "trainer.max_epochs", "trainer.log_every_n_steps", "model", "data", "checkpoint"):
        assert default.config.fit[name] == written.config.fit[name]


def test_fit_leaves_checkpoints_scalars_images_and_the_configuration():
    EstimatorCLI(["fit", *SMALL, "--trainer.max_epochs=1"])
    run = Path("lightning_logs/version_0")
    assert (run / "checkpoints/last.ckpt").is_file()
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["class_path"].endswith(
        "modules.DiscreteLatentModel"
    )
    events = EventAccumulator(str(run), size_guidance={"images": 1}).Reload().Tags()
    assert {"train/loss", "val/loss"} <= set(events["scalars"])
    assert "hp_metric" not in events["scalars"]
    assert {"images/inputs", "images/reconstructions", "images/prior_samples"} <= set(events["images"])


def test_one_callback_more_keeps_the_default_ones():
    cli = EstimatorCLI(["fit", *SMALL, "--trainer.fast_dev_run=1", "--trainer.callbacks+=GradientVariance"])
    names = {type(callback).__name__ for callback in cli.trainer.callbacks}
    assert {"GradientVariance", "Reconstructions"} <= names
    cli = EstimatorCLI(["fit", *SMALL, "--trainer.fast_dev_run=1", "--trainer.callbacks=[]"])
    assert "Reconstructions" not in {type(callback).__name__ for callback in cli.trainer.callbacks}


# Names


def test_short_names_and_their_options(data_root):
    model = ["--model", "DiscreteLatentModel", "--model.estimator", "Concrete", "--model.estimator.temperature", "0.3"]
    optimizers = ["--model.optimizer", "SGD", "--model.optimizer.lr", "0.2", "--model.surrogate_optimizer.lr", "0.1"]
    data = ["--data", "MNIST", "--data.root", str(data_root)]
    cli = EstimatorCLI(["fit", *SMALL, *BARE, "--trainer.max_steps=1", *model, *optimizers, *data])
    assert isinstance(cli.datamodule, MNIST)
    assert isinstance(cli.model, DiscreteLatentModel)
    assert cli.model.image_shape == (1, 28, 28)
    assert cli.model.event_shapes == [(200,)]  # the class's own default, not that of the digits job
    assert isinstance(cli.model.estimators[0], Concrete)
    assert cli.model.estimators[0].log_temperature.exp().item() == pytest.approx(0.3)
    assert isinstance(cli.trainer.optimizers[0].parts["model"], torch.optim.SGD)
    assert learning_rates(cli) == [0.2]


@pytest.mark.parametrize(("name", "latent"), [("DisARM", "bernoulli"), ("CARMS", "categorical")])
def test_estimators_that_draw_their_samples_together_by_short_name(name, latent):
    model = ["--model.estimator", name, "--model.estimator.num_samples=6", "--model.latent", latent]
    (estimator,) = EstimatorCLI(["fit", *SMALL, *BARE, "--trainer.max_steps=1", *model]).model.estimators
    assert type(estimator).__name__ == name
    assert estimator.num_samples == 6


def test_a_class_that_replaces_another_gets_only_options_that_were_written():
    run = ["fit", *SMALL, *BARE, "--trainer.max_steps=1"]
    estimator = EstimatorCLI([*run, "--model.estimator=Concrete"]).model.estimators[0]
    assert not estimator.log_temperature.requires_grad  # that of the default, REBAR, is learned
    Path("job.yaml").write_text(
        "model:\n"
        "  class_path: DiscreteLatentModel\n"
        "  init_args:\n"
        "    estimator: {class_path: REBAR, init_args: {temperature: 0.25, eta: 2.0}}\n"
        "    optimizer: {class_path: Adam, init_args: {lr: 0.125, betas: [0.5, 0.5]}}\n"
        "data: {class_path: MNIST, init_args: {batch_size: 30, binarization: static}}\n"
    )
    cli = EstimatorCLI(
        [*run, "--config=job.yaml", "--model.estimator=Concrete", "--model.optimizer=SGD", "--data=Digits"]
    )
    estimator = cli.model.estimators[0]
    assert (estimator.log_temperature.exp().item(), estimator.log_temperature.requires_grad) == (0.25, False)
    assert isinstance(cli.trainer.optimizers[0].parts["model"], torch.optim.SGD)
    assert learning_rates(cli) == [0.125]
    assert isinstance(cli.datamodule, Digits)
    assert (cli.datamodule.batch_size, cli.datamodule.binarization) == (30, "static")


def test_numbers_of_batches_are_not_fractions():
    options = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=0.5", "--trainer.max_epochs=1"]
    cli = EstimatorCLI(["fit", *QUIET, *BARE, *options])
    assert cli.trainer.global_step == 1
    assert cli.trainer.num_val_batches == [1]  # of 2


def test_a_model_that_takes_no_image_shape():
    options = ["--model", "ToyModel", "--model.estimator", "RELAX", "--model.num_draws", "2", "--data", "Toy"]
    cli = EstimatorCLI(["fit", *TWO_STEPS, *options, "--trainer.callbacks=[]"])
    assert isinstance(cli.model, ToyModel)
    assert isinstance(cli.model.estimator, RELAX)


def test_classes_of_a_foreign_project(tmp_path, monkeypatch):
    Path("foreign_project.py").write_text(
        textwrap.dedent(
            """
            import torch
            from torch.distributions import Bernoulli, Independent
            from lightning_estimators.estimators import REINFORCE, GradientEstimator
            from lightning_estimators.modules import EstimatorModule

            class Mine(REINFORCE):
                pass

            class Pixels(EstimatorModule):
                def __init__(self, estimator: GradientEstimator = REINFORCE(), pixels: int = 64):
                    super().__init__()
                    self.logits = torch.nn.Parameter(torch.zeros(pixels))
                    self.estimator = estimator

                def loss(self, batch):
                    x = batch.flatten(1)
                    q = Independent(Bernoulli(logits=self.logits.expand_as(x)), 1)
                    return self.estimator(q, lambda b: (b - x).square().sum(-1))

                def test_step(self, batch, batch_idx):
                    self.log("test/logits", self.logits.mean())
            """
        )
    )
    # As the console script starts: without the current folder on the path.
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", ".", str(tmp_path))])
    command = ["lightning-estimators", "fit", *TWO_STEPS, "--model", "foreign_project.Pixels"]
    monkeypatch.setattr(sys, "argv", [*command, "--model.estimator", "foreign_project.Mine"])
    main()
    project = sys.modules["foreign_project"]
    cli = EstimatorCLI(["test", *SMALL, "--ckpt_path", "last"])
    assert type(cli.model) is project.Pixels
    assert type(cli.model.estimator) is project.Mine
    assert not torch.equal(cli.model.logits, torch.zeros(64))
    # Its own default estimator is not replaced by that of the default job.
    cli = EstimatorCLI(["fit", *TWO_STEPS, *BARE, "--model", "foreign_project.Pixels"])
    assert cli.model.estimator.configuration()["class_path"] == "lightning_estimators.estimators.REINFORCE"


def test_print_config_and_help(capsys, monkeypatch):
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--model.estimator", "RELAX", "--print_config"])
    assert exit_.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["estimator"]["class_path"] == "lightning_estimators.RELAX"
    assert printed["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.01
    Path("printed.yaml").write_text(yaml.safe_dump(printed))
    assert isinstance(EstimatorCLI(["fit", "--config", "printed.yaml", *TWO_STEPS, *BARE]).model.estimators[0], RELAX)
    for asked, told in ((["--help"], "fit"), (["fit", "--help"], "--trainer.max_epochs")):
        monkeypatch.setattr(sys, "argv", ["python -m lightning_estimators", *asked])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_module("lightning_estimators", run_name="__main__")
        assert exit_.value.code == 0
        assert told in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["fit", "--model.help", "DiscreteLatentModel"])
    assert "--model.num_latents" in capsys.readouterr().out


# Checkpoints


def test_test_after_fit_rebuilds_model_and_data():
    options = ["--model.estimator", "RELAX", "--model.num_latents", "[4, 3]", "--model.test_samples", "3"]
    fitted = EstimatorCLI(["fit", *TWO_STEPS, *options, "--data.seed", "5", "--seed_everything", "7"])
    tested = EstimatorCLI(["test", *SMALL, "--ckpt_path", "last"])
    assert tested.model.event_shapes == [(4,), (3,)]
    assert isinstance(tested.model.estimators[1], RELAX)
    assert (tested.model.test_samples, tested.datamodule.seed, tested.config.test.seed_everything) == (3, 5, 7)
    for name, value in fitted.model.state_dict().items():
        if "test" not in name:
            assert torch.equal(value, tested.model.state_dict()[name])
    assert torch.isfinite(tested.trainer.callback_metrics["test/bound"])


def test_checkpoint_below_configuration_file_below_option():
    EstimatorCLI(["fit", *TWO_STEPS, "--model.num_latents=[4]", "--model.test_samples=2", "--data.batch_size=50"])
    Path("more.yaml").write_text("model: {init_args: {test_samples: 3}}\ndata: {init_args: {eval_batch_size: 8}}\n")
    cli = EstimatorCLI(["test", *SMALL, "--ckpt_path=last", "--config=more.yaml", "--data.eval_batch_size=9"])
    assert cli.model.event_shapes == [(4,)]
    assert cli.model.test_samples == 3
    assert (cli.datamodule.batch_size, cli.datamodule.eval_batch_size) == (50, 9)


def test_options_of_a_resumed_fit_win_over_restored_state():
    options = ["--model.num_latents=[4]", "--model.estimator=Concrete", "--model.lr_scheduler=StepLR"]
    EstimatorCLI(["fit", *TWO_STEPS, *options, "--model.lr_scheduler.step_size=1", "--model.optimizer.lr=0.25"])
    resume = ["fit", *SMALL, "--trainer.max_steps=3", "--ckpt_path=last", "--trainer.enable_checkpointing=false"]
    same = EstimatorCLI(resume)
    assert same.trainer.global_step == 3
    assert learning_rates(same) == [0.25]
    assert same.model.estimators[0].log_temperature.exp().item() == 0.5
    changed = [*resume, "--model.optimizer.lr=0.5", "--model.optimizer.weight_decay=0.1"]
    cli = EstimatorCLI([*changed, "--model.lr_scheduler.gamma=0.3", "--model.estimator.temperature=0.125"])
    assert learning_rates(cli) == [0.5]
    assert cli.trainer.optimizers[0].param_groups[0]["weight_decay"] == 0.1
    assert cli.trainer.lr_scheduler_configs[0].scheduler.gamma == 0.3
    assert cli.model.estimators[0].log_temperature.exp().item() == 0.125


def test_another_optimizer_cannot_take_over(capsys):
    EstimatorCLI(["fit", *TWO_STEPS, "--model.num_latents=[4]"])
    message = refused(capsys, "fit", *SMALL, "--ckpt_path=last", "--model.optimizer=SGD", "--model.optimizer.lr=0.1")
    assert "torch.optim.Adam" in message
    assert "torch.optim.SGD" in message


def test_a_rerun_and_a_resumed_run_reproduce():
    run = ["fit", *SMALL, "--model.num_latents=[4]", "--seed_everything=7", "--trainer.max_steps=20"]
    once = EstimatorCLI([*run, *BARE]).model.state_dict()
    torch.rand(3)
    twice = EstimatorCLI([*run, *BARE]).model.state_dict()
    EstimatorCLI([*run, "--trainer.max_steps=17"])
    # Without saying the model, the data and the seed again.
    resumed = EstimatorCLI(["fit", *SMALL, "--trainer.max_steps=20", "--ckpt_path=last"]).model.state_dict()
    for name, value in once.items():
        assert torch.equal(value, twice[name]), name
        assert torch.equal(value, resumed[name]), name
    other = EstimatorCLI([*run, *BARE, "--seed_everything=8"]).model.state_dict()
    assert not torch.equal(once["prior"], other["prior"])


def test_last_is_the_newest_run_and_best_the_best_of_it():
    EstimatorCLI(["fit", *TWO_STEPS, "--model.num_latents=[4]"])
    newest = ["--model.num_latents=[5]", "--checkpoint.monitor=val/loss", "--trainer.max_epochs=2"]
    fitted = EstimatorCLI(["fit", *SMALL, *newest, "--trainer.default_root_dir=elsewhere"])
    assert EstimatorCLI(["test", *SMALL, "--ckpt_path=last"]).model.event_shapes == [(4,)]
    there = "--trainer.default_root_dir=elsewhere"
    best = EstimatorCLI(["test", *SMALL, "--ckpt_path=best", there])
    assert best.model.event_shapes == [(5,)]
    assert best.config.test.ckpt_path == str(Path(fitted.trainer.checkpoint_callback.best_model_path).absolute())
    os.rename("elsewhere", "moved")
    moved = EstimatorCLI(["test", *SMALL, "--ckpt_path=best", "--trainer.default_root_dir=moved"])
    assert Path(moved.config.test.ckpt_path).is_relative_to(Path("moved").absolute())


def test_no_checkpoint(capsys):
    assert "no last.ckpt of an earlier run under" in refused(capsys, "test", "--ckpt_path", "last")
    assert "there is no file nothing.ckpt" in refused(capsys, "test", "--ckpt_path", "nothing.ckpt")
    Path("noise.ckpt").write_text("noise")
    assert "noise.ckpt is no checkpoint, or a damaged one" in refused(capsys, "test", "--ckpt_path", "noise.ckpt")
    torch.save({"state_dict": {}}, "weights.ckpt")
    assert "it lacks pytorch-lightning_version" in refused(capsys, "test", "--ckpt_path", "weights.ckpt")
    torch.save([1], "list.ckpt")
    assert "it lacks state_dict and" in refused(capsys, "fit", "--ckpt_path", "list.ckpt")
    EstimatorCLI(["fit", *TWO_STEPS])
    assert "monitored no metric" in refused(capsys, "validate", "--ckpt_path", "best")


def test_weights_that_do_not_fit_the_options(capsys):
    EstimatorCLI(["fit", *TWO_STEPS, "--model.num_latents=[4]"])
    with pytest.raises(SystemExit) as exit_:
        main(["test", *SMALL, "--ckpt_path=last", "--model.num_latents=[5]"])
    assert exit_.value.code == 2
    assert "size mismatch" in capsys.readouterr().err


def test_validate_and_predict():
    EstimatorCLI(["fit", *TWO_STEPS, "--model.num_latents=[4]"])
    assert "val/loss" in EstimatorCLI(["validate", *SMALL, "--ckpt_path=last"]).trainer.callback_metrics
    cli = EstimatorCLI(["predict", *QUIET, "--trainer.limit_predict_batches=1", "--ckpt_path=last"])
    (batch,) = torch.load(Path(cli.trainer.log_dir, "predictions.pt"), weights_only=True)
    assert batch["reconstructions"].shape == (100, 1, 8, 8)


# Folders


def test_without_a_logger_nothing_is_written_into_the_folder():
    EstimatorCLI(["fit", *TWO_STEPS, *BARE])
    assert os.listdir() == []


def test_an_unwritable_folder_is_refused_before_training(capsys):
    Path("file").touch()
    message = refused(capsys, "fit", *TWO_STEPS, "--trainer.default_root_dir", "file/logs")
    assert "cannot be written" in message
    assert "file/logs" in message
    assert os.listdir() == ["file"]


# Misuse


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["fiit"], ["fiit", "'fit'", "'predict'"]),
        (["fit", "--trainer.max_epoch", "3"], ["unrecognized", "Did you mean --trainer.max_epochs?"]),
        (["fit", "--trainer.max_epochs", "many"], ["trainer.max_epochs", "int", "many"]),
        (["fit", "--model", "Discrete"], ['"model"', "import path", "Discrete"]),
        (
            ["fit", "--model", "DiscreteLatentMode"],
            ['"model"', "DiscreteLatentMode ", "Did you mean DiscreteLatentModel?"],
        ),
        (["fit", "--model", "nowhere.Model"], ['"model"', "No module named 'nowhere'"]),
        (["fit", "--model.estimator", "RELAXX"], ['"model"', '"estimator"', "RELAXX", "Did you mean RELAX?"]),
        (
            ["fit", "--model.estimator", "REBAR", "--model.estimator.temperatur", "1"],
            ['"estimator"', "estimators.REBAR'", "'temperatur' is not accepted", "Did you mean temperature?"],
        ),
        (["fit", "--model.estimator.temperature", "hot"], ['"estimator"', '"temperature"', "float", "hot"]),
        (["fit", "--model.estimator.temperature", "-1"], ["temperature", "-1"]),
        (["fit", "--model.optimizer", "Adan"], ['"optimizer"', "Adan"]),
        (["fit", "--model.num_latents", "[]"], ["num_latents", "at least one layer"]),
        (["fit", "--model.image_shape", "[1, 9, 9]"], ["--model.image_shape", "leave it out"]),
        (["fit", "--model", "ToyModel", "--data", "Toy"], ["ToyModel", "required: estimator"]),
        (["fit", "--model.optimizer.lrr", "1"], ['"optimizer"', "'lrr' is not accepted", "Did you mean lr?"]),
        (["fit", "--model.lr_scheduler", "StepL"], ['"lr_scheduler"', "StepL", "Did you mean StepLR?"]),
        (["fit", "--model.lr_scheduler", "StepLR"], ['"lr_scheduler"', "required: step_size"]),
        (
            ["fit", "--trainer.callbacks+=GradientVariance", "--trainer.callbacks.num_sample=3"],
            ["GradientVariance", "'num_sample' is not accepted", "Did you mean num_samples?"],
        ),
        (
            ["fit", "--trainer.callbacks+=GradientVariance", "--trainer.callbacks.method=guess"],
            ['"trainer.callbacks"', '"method"', "'fresh', 'moments'", "guess"],
        ),
        (["fit", *SMALL, "--data", "Toy"], ["DiscreteLatentModel needs image_shape", "--data Digits"]),
        (["fit", "--data", "MNISTT"], ['"data"', "Did you mean MNIST?"]),
        (["fit", "--data.batchsize", "3"], ["Digits'", "'batchsize' is not accepted", "Did you mean batch_size?"]),
        (["fit", "--data.binarization", "dithered"], ['"binarization"', "'dynamic'", "'none'", "dithered"]),
        (["fit", *SMALL, "--data", "MNIST"], ["MNIST", "train-images-idx3-ubyte", "--data.download", "--data.root"]),
        (["fit", "--config", "nowhere.yaml"], ['"config"', "nowhere.yaml"]),
        (["fit", "--model", "3"], ['"model"', "3"]),
        (
            ["fit", *SMALL, "--model.optimizer", "Adam", "--model.optimizer.capturable", "true"],
            ["capturable=True", "supported devices"],
        ),
        (["fit", *SMALL, "--trainer.accumulate_grad_batches", "0"], ["accumulate_grad_batches", "1 or more"]),
        (["fit", *SMALL, "--trainer.devices", "99999"], ["--trainer.devices 99999", "processors"]),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else None,
)
def test_misuse_gets_one_message(capsys, args, told):
    message = refused(capsys, *args)
    for words in told:
        assert words in message
    assert "NestedArg" not in message
    assert not Path("lightning_logs").exists() or not list(Path("lightning_logs").glob("*/checkpoints"))


def test_a_categorical_given_to_a_bernoulli_only_estimator(capsys, tmp_path, monkeypatch):
    Path("bernoulli_only.py").write_text(
        "from torch.distributions import Bernoulli\n"
        "from lightning_estimators.estimators import REINFORCE\n"
        "class Only(REINFORCE):\n"
        "    families = (Bernoulli,)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = ["--model.latent", "categorical", "--model.estimator", "bernoulli_only.Only"]
    message = refused(capsys, "fit", *SMALL, *options)
    assert "Only supports Bernoulli; got OneHotCategorical" in message


def test_a_bug_is_not_taken_for_misuse(tmp_path, monkeypatch):
    Path("broken_project.py").write_text(
        "from lightning_estimators.modules import EstimatorModule\n"
        "class Broken(EstimatorModule):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        [].pop()\n"
        "    def loss(self, batch): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(IndexError, match="pop from empty list"):
        main(["fit", *TWO_STEPS, "--model", "broken_project.Broken"])
