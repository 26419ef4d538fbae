"""Every block of Python in the documentation runs, each by itself, in an empty folder; so does every block of bash.

A step of its own, since it takes minutes: `pytest -n auto docs/test_pages.py`. Commands that cannot run here (on
several machines, say) are blocks of `console`; examples of libraries that are not installed are skipped.
"""

import importlib
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^([ ]*)```(\w+)[^\n]*\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
OPTIONAL = ("optuna",)


def blocks(language: str) -> list:
    """All blocks of a language, named by page and place."""
    found = []
    for page in PAGES:
        of_page = [match for match in BLOCK.finditer(page.read_text()) if match[2] == language]
        for number, match in enumerate(of_page, 1):
            code = "\n".join(line.removeprefix(match[1]) for line in match[3].split("\n"))
            found.append(pytest.param(code, id=f"{page.relative_to(ROOT)}-{number}"))
    return found


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """An empty folder, small tensors on one core, and the noise of a new process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.distributions.Distribution.set_default_validate_args(True)  # torch.compile turns it off


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs_alone(code, monkeypatch):
    for library in OPTIONAL:
        if f"import {library}" in code and find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    # As a module, so that classes can be found again by what saves them.
    Path("example.py").write_text(code)
    monkeypatch.syspath_prepend(".")
    monkeypatch.delitem(sys.modules, "example", raising=False)
    importlib.invalidate_caches()
    importlib.import_module("example")
    del sys.modules["example"]


@pytest.mark.parametrize("code", blocks("bash"))
def test_commands_run_alone(code):
    folder = Path(sys.executable).parent
    assert shutil.which("lightning-estimators", path=str(folder)), "the package is not installed"
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    environment = dict(os.environ, PATH=path, PYTHONPATH=str(ROOT))
    run = subprocess.run(["bash", "-euo", "pipefail", "-c", code], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-4000:]


def test_table_is_of_the_rows(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs/tables")
    lines = list(importlib.import_module("which_estimator").lines())
    assert "\n".join(lines) in (ROOT / "docs/which_estimator.md").read_text(), "python docs/tables/which_estimator.py"
