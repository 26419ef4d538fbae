"""One import for everything, and no library is loaded that is not needed."""

import subprocess
import sys

import pytest

import lightning_estimators
from lightning_estimators import baselines, estimators, modules


def test_what_rooms_export_can_be_imported_from_the_package():
    for room in (estimators, baselines, modules):
        for name in room.__all__:
            assert getattr(lightning_estimators, name) is getattr(room, name)
            assert name in dir(lightning_estimators)


def test_a_misspelt_name_is_an_import_error():
    with pytest.raises(ImportError, match="REBARR"):
        from lightning_estimators import REBARR  # noqa: F401


@pytest.mark.parametrize(
    "statement",
    [
        "import lightning_estimators.estimators",
        "from lightning_estimators import RELAX",
        "from lightning_estimators import objectives, testing",
    ],
)
def test_estimators_load_neither_lightning_nor_the_compiler(statement):
    heavy = ["lightning", "torch._dynamo", "torchvision", "sklearn", "matplotlib", "gymnasium", "jsonargparse"]
    program = (
        f"import sys\nimport torch\nbefore = set(sys.modules)\n{statement}\n"
        f"print(*(set({heavy}) & set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_the_package_itself_loads_nothing():
    program = "import sys, lightning_estimators\nprint('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
