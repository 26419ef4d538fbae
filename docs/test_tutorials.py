"""Every tutorial runs in an empty folder, as a reader's copy does: `pytest -n auto docs/test_tutorials.py`."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIALS = sorted((Path(__file__).parent / "tutorials").glob("*.ipynb"))
SECONDS = 600
"""After which a cell counts as stuck."""


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(tmp_path)}}).execute()
    kept = nbformat.read(path, as_version=4)
    for now, before in zip(notebook.cells, kept.cells, strict=True):
        # Figures differ in their last digits, and from one machine to another; that they are there does not.
        assert kinds(now) == kinds(before), f"run `jupyter nbconvert --to notebook --execute --inplace {path}`"


def kinds(cell) -> set:
    """What kinds of output a cell has, text written to stderr left out."""
    outputs = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
    return {kind for output in outputs for kind in output.get("data", {"text": None})}
