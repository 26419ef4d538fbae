"""The Python in the documentation runs, each page by itself."""

import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", ["costs.md", "schedules.md", "training.md"])
def test_every_example_of_a_page_runs_alone(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        torch.manual_seed(0)
        exec(compile(block, page, "exec"), {"__name__": "example"})
