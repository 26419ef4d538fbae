"""What all tests share: the data, and a machine left as it was found."""

import os
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

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


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write bytes in the format of MNIST's files."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


def make_blobs(random: np.random.Generator, count: int) -> np.ndarray:
    """Bright blobs on black, 28×28, in all grey levels: learnable, unlike noise."""
    centre = random.uniform(9, 19, (2, count, 1, 1))
    width = random.uniform(2, 5, (2, count, 1, 1))
    y, x = np.mgrid[:28, :28]
    distance = ((y - centre[0]) / width[0]) ** 2 + ((x - centre[1]) / width[1]) ** 2
    return (255 * np.clip(1.6 * np.exp(-distance / 2), 0, 1)).round().astype(np.uint8)


def make_omniglot(folder: Path, random: np.random.Generator) -> None:
    """Black strokes on white, 105×105, one bit, in Omniglot's folders, and the zips of them."""
    for part, alphabets in (("images_background", ("Braille", "Greek")), ("images_evaluation", ("Angelic",))):
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
            for alphabet in alphabets:
                for character in (1, 2):
                    strokes = random.uniform(20, 85, (2, 4, 2))
                    for drawing in range(1, 21):
                        path = (
                            folder / part / alphabet / f"character{character:02}" / f"{character:04}_{drawing:02}.png"
                        )
                        path.parent.mkdir(parents=True, exist_ok=True)
                        image = Image.new("1", (105, 105), 1)
                        for stroke in strokes + random.normal(0, 2, strokes.shape):
                            ImageDraw.Draw(image).line([tuple(point) for point in stroke], fill=0, width=3)
                        image.save(path)
                        archive.write(path, path.relative_to(folder))
