"""Comparisons inside a run: the command line, and the callback."""

import json
import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_estimators.callbacks import EstimatorComparison
from lightning_estimators.cli import EstimatorCLI
from lightning_estimators.estimators import REBAR, StochasticBackprop
from lightning_estimators.modules import DiscreteLatentModel

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
SMALL = ["--model.num_latents=[4]", "--data.batch_size=20"]
COMPARE = ["compare", *QUIET, "--budget=2", "--learning_steps=2"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_command_line_compares_at_the_weights_of_the_last_checkpoint(capsys, tmp_path):
    fitted = EstimatorCLI(["fit", *QUIET, *SMALL, "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"])
    compared = EstimatorCLI([*COMPARE, "--ckpt_path=last", "--estimators=[StochasticBackprop, REINFORCE]"])
    for (name, ours), theirs in zip(compared.model.named_parameters(), fitted.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    folder = tmp_path / "lightning_logs" / "version_1"
    table, kept = (folder / "comparison.txt").read_text(), json.loads((folder / "comparison.json").read_text())
    assert [row["name"] for row in kept["rows"]] == ["REBAR()", "StochasticBackprop()", "REINFORCE()"]
    assert kept["reference"]["kind"] == "exact"
    assert kept["data_variance"] > 0
    assert table in capsys.readouterr().out
    assert "recommendation: " in table
    assert (folder / "comparison.png").stat().st_size > 1000
    events = EventAccumulator(str(folder)).Reload()
    assert "comparison/variance and time" in events.Tags()["images"]
    assert events.Scalars("comparison/REBAR()/log_variance")[0].step == 2
    assert any(tag.startswith("comparison/table") for tag in events.Tags()["tensors"])


def test_command_line_says_when_it_compares_at_initial_weights(capfd, monkeypatch):
    said = []
    monkeypatch.setattr("lightning_estimators.commandline.comparing_trainer.rank_zero_info", said.append)
    EstimatorCLI([*COMPARE, *SMALL, "--estimators=[]", "--trainer.logger=false"])
    assert said == ["No --ckpt_path: estimators are compared at the initial weights."]


def fitted_weights(*callbacks):
    pl.seed_everything(0)
    model = DiscreteLatentModel(REBAR(), image_shape=(1, 4, 4), num_latents=[3], data_mean=0.5)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", callbacks=list(callbacks), log_every_n_steps=1, logger=bool(callbacks), **quiet
    )
    images = (torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    trainer.fit(model, torch.utils.data.DataLoader(images, batch_size=4, shuffle=True))
    return model.state_dict(), [torch.get_rng_state(), *state_of(trainer)], trainer


def state_of(trainer):
    """Numbers of Adam, and gradients."""
    optimizer = trainer.optimizers[0]
    found = [value for parameter in optimizer.state for value in optimizer.state[parameter].values()]
    return [*found, *(p.grad for p in trainer.lightning_module.parameters() if p.grad is not None)]


def test_training_is_the_same_with_the_callback(tmp_path):
    callback = EstimatorComparison(every_n_epochs=2, budget=1.5, estimators=[StochasticBackprop()])
    watched, rng, _trainer = fitted_weights(callback)
    alone, rng_alone, _ = fitted_weights()
    assert all(torch.equal(value, alone[name]) for name, value in watched.items())
    assert len(rng) == len(rng_alone) > 20
    assert all(torch.equal(value, other) for value, other in zip(rng, rng_alone, strict=True))
    assert [row.name for row in callback.latest.rows] == ["REBAR()", "StochasticBackprop()"]
    assert {path.name for path in tmp_path.rglob("comparison*")} == {
        *("comparison_epoch1.txt", "comparison_epoch1.json", "comparison_epoch1.png")
    }


def test_a_comparison_that_fails_is_a_warning(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no memory is left")

    monkeypatch.setattr("lightning_estimators.callbacks.estimator_comparison.compare", fail)
    callback = EstimatorComparison(every_n_epochs=1, budget=1.0)
    with pytest.warns(UserWarning, match="Epoch 1: estimators could not be compared: RuntimeError: no memory is left"):
        *_, trainer = fitted_weights(callback)
    assert trainer.current_epoch == 2
    assert callback.latest is None


def test_callback_refuses_modules_without_estimators():
    with pytest.raises(ValueError, match="BoringModel, which has none"):
        pl.Trainer(callbacks=[EstimatorComparison()], logger=False, enable_checkpointing=False).fit(BoringModel())


@pytest.mark.parametrize("arguments", [{"every_n_epochs": 0}, {"budget": 0.0}, {"budget": float("inf")}])
def test_callback_refuses_numbers_out_of_range(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        EstimatorComparison(**arguments)


def test_import_of_the_package_is_light():
    code = "import sys, lightning_estimators; sys.exit('lightning' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
