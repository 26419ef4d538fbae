"""Every file in configs/ runs."""

from pathlib import Path

import pytest
import yaml

from lightning_estimators.cli import EstimatorCLI, main

CONFIGS = sorted((Path(__file__).parents[1] / "lightning_estimators" / "configs").glob("*.yaml"))
FEW = ["--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1", "--trainer.accelerator=cpu"]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
NEEDS = {
    "CartPole-v1": ["gymnasium"],
    "Pendulum-v1": ["gymnasium"],
    "LunarLander-v3": ["gymnasium", "Box2D"],
    "InvertedPendulum-v5": ["gymnasium", "mujoco"],
}


def test_there_is_a_file_for_each_model_of_the_papers():
    assert len(CONFIGS) >= 7


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_fits_and_tests(path, tmp_path, monkeypatch, generated_root):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(generated_root)
    settings = yaml.safe_load(path.read_text())
    for needed in NEEDS.get(settings["data"]["init_args"].get("env"), ()):
        pytest.importorskip(needed, reason=f"{settings['data']['init_args']['env']} needs {needed}")
    cheaper = ["--model.num_draws=10"] if settings["model"]["class_path"].endswith("ToyModel") else []
    cli = EstimatorCLI(["fit", "--config", str(path), *FEW, *QUIET, *cheaper, "--trainer.max_steps=2"])
    assert cli.trainer.global_step == 2
    assert type(cli.model).__name__ == settings["model"]["class_path"].rpartition(".")[2]
    if hasattr(cli.model, "test_samples"):
        main(["test", "--ckpt_path", "last", *FEW, *QUIET, "--model.test_samples=2"])
