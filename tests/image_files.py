"""Writes small files in the formats of MNIST and Omniglot."""

import struct
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


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
