"""What all tests share: the data, and a machine left as it was found."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import make_blobs, make_omniglot, write_idx

DATA_VARIABLE = "LIGHTNING_ESTIMATORS_DATA"  # a folder in torchvision's layout, with real files
UNPACK = Path(__file__).resolve().parents[2] / "shared" / "data" / "unpack"


def pytest_configure() -> None:
    # The tests' tensors are small, and several processes may share the machine; subprocesses inherit the variable.
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def fixed_seed():
    """Each test starts from the same noise, whatever ran before, and leaves no seed to the next."""
    seed = os.environ.pop("PL_GLOBAL_SEED", None)
    torch.manual_seed(0)
    # torch.compile turns the validation of distributions off for the whole process, the first time that it is used.
    torch.distributions.Distribution.set_default_validate_args(True)
    yield
    os.environ.pop("PL_GLOBAL_SEED", None)
    if seed is not None:
        os.environ["PL_GLOBAL_SEED"] = seed


@pytest.fixture(scope="session")
def generated_root(tmp_path_factory) -> Path:
    """Small made-up files in the formats of MNIST, FashionMNIST and Omniglot: fast, the same on every machine.

    MNISTs: 300 training and 60 test images. Omniglot: 6 characters of 3 alphabets, 20 drawings of each.
    """
    root = tmp_path_factory.mktemp("generated")
    random = np.random.default_rng(0)
    for name in ("MNIST", "FashionMNIST"):
        folder = root / name / "raw"
        folder.mkdir(parents=True)
        for split, count in (("train", 300), ("t10k", 60)):
            write_idx(folder / f"{split}-images-idx3-ubyte", make_blobs(random, count))
            write_idx(folder / f"{split}-labels-idx1-ubyte", random.integers(0, 10, count, dtype=np.uint8))
    make_omniglot(root / "omniglot-py", random)
    return root


@pytest.fixture(scope="session")
def data_root(generated_root) -> Path:
    """Real MNIST and FashionMNIST where they are at hand, otherwise `generated_root`."""
    return real_data("mnist", "fashionmnist") or generated_root


@pytest.fixture(scope="session")
def omniglot_root(generated_root) -> Path:
    """Real Omniglot where it is at hand (32,460 files: it takes a while), otherwise `generated_root`."""
    return real_data("omniglot") or generated_root


def real_data(*names: str) -> Path | None:
    """The folder with the real files of these datasets, or None if they are nowhere to be found."""
    if folder := os.environ.get(DATA_VARIABLE):
        return Path(folder)
    if not UNPACK.is_file():
        return None
    user = os.getuid() if hasattr(os, "getuid") else "user"
    target = Path(tempfile.gettempdir(), f"lightning-estimators-data-{user}")
    for name in names:
        done = target / f".{name}"
        # `unpack` puts every file in place by a rename, so that test runs at the same time do not disturb each other.
        if not done.exists():
            subprocess.run([sys.executable, str(UNPACK), str(target), name], check=True, stdout=subprocess.DEVNULL)
            done.touch()
    return target
