"""Nothing runs, and nothing is imported, because a checkpoint or a configuration file names it."""

import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml

from lightning_estimators.checkpoints import check_classes, read_checkpoint
from lightning_estimators.cli import main
from lightning_estimators.datamodules import BreastCancer, Digits, Gymnasium, Toy
from lightning_estimators.estimators import REBAR
from lightning_estimators.modules import DiscreteLatentModel, EstimatorModule

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
SHORT = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.fast_dev_run=1"]
SHELL = {"class_path": "os.system", "init_args": {"command": "touch pwned"}}
CLASS_THAT_RUNS = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "pwned"]}}


@pytest.fixture(autouse=True)
def checkpoint(tmp_path, monkeypatch):
    """A good one, as good.ckpt in the current folder; afterwards nothing has been run."""
    monkeypatch.chdir(tmp_path)
    model = DiscreteLatentModel(REBAR(), Digits.image_shape, num_latents=[3], test_samples=1)
    trainer = pl.Trainer(max_steps=1, limit_val_batches=0, enable_checkpointing=False, **QUIET)
    trainer.fit(model, Digits())
    trainer.save_checkpoint("good.ckpt")
    yield torch.load("good.ckpt", weights_only=True)
    assert not Path("pwned").exists()


def refused(capsys, *args):
    with pytest.raises(SystemExit) as exit_:
        main([*args])
    assert exit_.value.code == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    return told


@pytest.mark.parametrize("evil", [SHELL, CLASS_THAT_RUNS, "os.system", "subprocess.Popen"], ids=str)
@pytest.mark.parametrize("place", ["optimizer", "estimator", "lr_scheduler", "anything"])
def test_hyper_parameters_run_nothing(capsys, checkpoint, place, evil):
    checkpoint["hyper_parameters"][place] = evil
    torch.save(checkpoint, "evil.ckpt")
    with pytest.raises(ValueError, match="could run anything"):
        DiscreteLatentModel.load_from_checkpoint("evil.ckpt")
    for command in ("fit", "validate", "test", "predict"):
        assert "could run anything" in refused(capsys, command, *SHORT, "--ckpt_path=evil.ckpt")


@pytest.mark.parametrize("name", ["_class_path", "_instantiator"])
def test_lightnings_own_entries_run_nothing(capsys, checkpoint, name):
    checkpoint["hyper_parameters"][name] = "os.system"
    torch.save(checkpoint, "evil.ckpt")
    if name == "_instantiator":  # Lightning refuses it; the command line has no use for it
        with pytest.raises(ValueError, match=r"os\.system"):
            DiscreteLatentModel.load_from_checkpoint("evil.ckpt")
    else:
        assert type(DiscreteLatentModel.load_from_checkpoint("evil.ckpt")) is DiscreteLatentModel
        assert "os.system" in refused(capsys, "test", *SHORT, "--ckpt_path=evil.ckpt")


def test_the_packages_own_record_runs_nothing(capsys, checkpoint):
    for name in ("model", "data"):
        checkpoint["lightning_estimators"][name] = SHELL
    torch.save(checkpoint, "evil.ckpt")
    assert "os.system" in refused(capsys, "test", *SHORT, "--ckpt_path=evil.ckpt")


@pytest.mark.parametrize(
    "form", [{"class_path": "lying_here.Network"}, "lying_here.network", "lying_here:Maze-v0"], ids=str
)
def test_nothing_is_imported_on_a_checkpoints_word(capsys, checkpoint, monkeypatch, tmp_path, form):
    Path("lying_here.py").write_text("open('pwned', 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint["hyper_parameters"]["estimator"] = form
    torch.save(checkpoint, "evil.ckpt")
    with pytest.raises(ValueError, match=r"lying_here.*import lying_here first"):
        DiscreteLatentModel.load_from_checkpoint("evil.ckpt")
    assert "--trust_checkpoint true" in refused(capsys, "test", *SHORT, "--ckpt_path=evil.ckpt")
    assert "lying_here" not in sys.modules


def test_what_is_trusted_is_imported(capsys, checkpoint, monkeypatch, tmp_path):
    Path("trusted_project.py").write_text(
        "from lightning_estimators.estimators import REBAR\nclass Mine(REBAR):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint["hyper_parameters"]["estimator"] = {"class_path": "trusted_project.Mine", "init_args": {}}
    torch.save(checkpoint, "mine.ckpt")
    assert "--trust_checkpoint true" in refused(capsys, "test", *SHORT, "--ckpt_path=mine.ckpt")
    main(["test", *SHORT, "--ckpt_path=mine.ckpt", "--trust_checkpoint=true"])
    del sys.modules["trusted_project"]
    loaded = DiscreteLatentModel.load_from_checkpoint("mine.ckpt", trust_checkpoint=True)
    assert type(next(iter(loaded.gradient_estimators().values()))).__module__ == "trusted_project"
    DiscreteLatentModel.load_from_checkpoint("mine.ckpt")  # imported by now


@pytest.mark.parametrize("evil", [SHELL, CLASS_THAT_RUNS, "os.system"], ids=str)
def test_configuration_files_run_nothing(capsys, evil):
    model = {
        "class_path": "DiscreteLatentModel",
        "init_args": {"estimator": {"class_path": "REBAR"}, "optimizer": evil},
    }
    Path("evil.yaml").write_text(yaml.safe_dump({"model": model}))
    refused(capsys, "fit", *SHORT, "--config=evil.yaml")
    Path("evil.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [evil]}}))
    refused(capsys, "fit", *SHORT, "--config=evil.yaml")


def test_a_function_of_ones_own_is_no_class(capsys, monkeypatch, tmp_path):
    Path("making.py").write_text(
        "import torch\ndef make(params, lr: float = 0.1) -> torch.optim.Optimizer:\n    open('pwned', 'w')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = {"estimator": {"class_path": "REBAR"}, "optimizer": {"class_path": "making.make", "init_args": {"lr": 1}}}
    Path("own.yaml").write_text(yaml.safe_dump({"model": {"class_path": "DiscreteLatentModel", "init_args": model}}))
    assert "making.make" in refused(capsys, "fit", *SHORT, "--config=own.yaml")


@pytest.mark.parametrize(
    "configuration",
    [
        {"root": "data.v2", "name": "runs/first.ckpt", "activation": "torch.nn.functional.relu"},
        {"optimizer": "torch.optim.Adam", "scheduler": {"class_path": "torch.optim.lr_scheduler.StepLR"}},
        {"text": "not.a_module.anywhere", "list": [{"class_path": "lightning_estimators.networks.MLP"}]},
        {"env": "CartPole-v1", "device": "cuda:0", "url": "http://localhost:6006", "folder": "gs://runs/first"},
    ],
)
def test_what_belongs_in_a_checkpoint_is_accepted(configuration):
    Path("data").mkdir()
    check_classes(configuration)


def test_an_environment_is_named_by_its_class():
    pytest.importorskip("gymnasium", reason="needs lightning-estimators[rl]")
    check_classes({"env": "gymnasium.envs.classic_control.CartPoleEnv"})
    with pytest.raises(ValueError, match="could run anything"):
        check_classes({"env": "gymnasium.make"})


def test_weights_from_a_url_are_plain_data(checkpoint):
    checkpoint["hyper_parameters"]["network"] = torch.nn.Linear(1, 1)  # unpickling it takes more than plain data
    torch.save(checkpoint, "objects.ckpt")
    url = Path("objects.ckpt").absolute().as_uri()
    for load in (read_checkpoint, DiscreteLatentModel.load_from_checkpoint):
        with pytest.raises(ValueError, match="more than plain data"):
            load(url)
    good = Path("good.ckpt").absolute().as_uri()
    assert type(DiscreteLatentModel.load_from_checkpoint(good)) is DiscreteLatentModel


def test_a_data_module_is_loaded_as_carefully(checkpoint, monkeypatch, tmp_path):
    pytest.importorskip("gymnasium", reason="needs lightning-estimators[rl]")
    url = Path("objects.ckpt").absolute().as_uri()
    torch.save(checkpoint | {"more": torch.nn.Linear(1, 1)}, "objects.ckpt")
    for kind in (Digits, BreastCancer, Toy, Gymnasium):
        for path in ("objects.ckpt", url):
            with pytest.raises(ValueError, match="more than plain data"):
                kind.load_from_checkpoint(path)
    Path("lying_here.py").write_text("open('pwned', 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(checkpoint | {Digits.CHECKPOINT_HYPER_PARAMS_KEY: {"env": "lying_here:Maze-v0"}}, "evil.ckpt")
    with pytest.raises(ValueError, match=r"lying_here.*import lying_here first"):
        Gymnasium.load_from_checkpoint("evil.ckpt")
    Path("hparams.yaml").write_text("env: lying_here:Maze-v0")
    with pytest.raises(ValueError, match=r"lying_here.*import lying_here first"):
        Gymnasium.load_from_checkpoint("good.ckpt", hparams_file="hparams.yaml")
    assert "lying_here" not in sys.modules
    assert Digits.load_from_checkpoint(Path("good.ckpt").absolute().as_uri(), batch_size=7).batch_size == 7


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("lightning_estimators", ["x"], "'lightning_estimators' in it must be of class Mapping, got list"),
        ("state_dict", "x", "'state_dict' in it must be of class Mapping, got str"),
        ("optimizer_states", "x", "'optimizer_states' in it must be of class list, got str"),
        ("global_step", "x", "'global_step' in it must be of class int, got str"),
        ("pytorch-lightning_version", "0.1", "was not saved by Lightning 2.0 or later, but by version '0.1'"),
        ("pytorch-lightning_version", "x", "was not saved by Lightning 2.0 or later, but by version 'x'"),
    ],
)
def test_a_checkpoint_with_damaged_parts_is_called_so(capsys, checkpoint, part, value, message):
    torch.save(checkpoint | {part: value}, "bad.ckpt")
    with pytest.raises(ValueError, match=message):
        DiscreteLatentModel.load_from_checkpoint("bad.ckpt")
    assert message in refused(capsys, "fit", *SHORT, "--ckpt_path=bad.ckpt")


@pytest.mark.parametrize(
    "content", [b"", b"no checkpoint", bytes(range(256)) * 9, None], ids=["empty", "text", "random", "cut"]
)
def test_what_is_no_checkpoint_is_called_so(capsys, content):
    good = Path("good.ckpt").read_bytes()
    Path("bad.ckpt").write_bytes(good[: len(good) // 2] if content is None else content)
    with pytest.raises(ValueError, match=r"bad\.ckpt is no checkpoint, or a damaged one") as error:
        DiscreteLatentModel.load_from_checkpoint("bad.ckpt")
    assert str(error.value) in refused(capsys, "test", "--ckpt_path=bad.ckpt")
    with open("bad.ckpt", "rb") as file, pytest.raises(ValueError, match="no checkpoint"):
        DiscreteLatentModel.load_from_checkpoint(file)
    with pytest.raises(FileNotFoundError, match=r"there is no file nowhere\.ckpt"):
        EstimatorModule.load_from_checkpoint("nowhere.ckpt")
