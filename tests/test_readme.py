"""The README's Python runs, and the file stays short; so does the example of a plug-in in CONTRIBUTING.md."""

import importlib
import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """The classes as one module, as in a reader's project, so that they can be pickled."""
    folder = tmp_path_factory.mktemp("project")
    text = README + (ROOT / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (folder / "readme_examples.py").write_text("\n".join(block for block in blocks if "\nclass " in block))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module("readme_examples")


def test_the_subclass_trains(examples):
    torch.manual_seed(0)
    coins, batch = examples.Coins(), torch.ones(32, 8)
    before = coins.loss(batch).mean()
    data = torch.utils.data.DataLoader(torch.ones(6400, 8), batch_size=32)
    trainer = pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(coins, data)
    assert coins.loss(batch).mean() < before - 0.02
    assert (coins.logits > 0).all()


def test_the_plug_in_keeps_its_claims(examples):
    from lightning_estimators.testing import check_estimator

    check_estimator(examples.Score)


def test_is_at_most_150_lines():
    assert len(README.splitlines()) <= 150


def test_every_estimator_and_baseline_is_in_the_table():
    from lightning_estimators import baselines, estimators

    helpers = {
        "Baseline",
        "ControlVariate",
        "Estimate",
        "GradientEstimator",
        "RunningBaseline",
        "StraightThroughEstimator",
        "check_differentiable",
        "value_and_gradient",
    }
    public = (set(estimators.__all__) | set(baselines.__all__)) - helpers
    assert sorted(name for name in public if f"`{name}`" not in README) == []


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README)
    assert [target for target in targets if "://" not in target and not (ROOT / target).exists()] == []
