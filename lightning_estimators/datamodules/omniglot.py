"""The Omniglot handwritten characters at 28×28 pixels, the size used for generative models."""

from __future__ import annotations

import hashlib
import io
import os
import uuid
import warnings
import zipfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from lightning_estimators.datamodules.base import ImageDataModule, Splits
from lightning_estimators.datamodules.indexed import SPLIT, seeded_generator

__all__ = ["Omniglot"]

PARTS = {"images_background": 964, "images_evaluation": 659}
"""The two folders of the published dataset, and the number of characters in each."""
DRAWINGS = 20  # of each character
TRAIN_DRAWINGS = 15
CACHE = "omniglot-28x28.pt"
CACHE_VERSION = 1  # raise it with any change in the conversion, so that older caches are made again


class Omniglot(ImageDataModule):
    """Handwritten characters of 50 alphabets, 1623 characters with 20 drawings each, 28×28, ink = 1.

    The characters of both parts of the original dataset (background and evaluation) are treated alike. Of each
    character the seed chooses 15 drawings for training and 5 for test, which makes 24,345 and 8,115 images. Of the
    training images, it then sets 1345 apart for validation. Drawings are scaled down from 105×105 with antialiasing,
    which makes grey levels. Several papers use a 28×28 file that was made by an unknown method and is split
    differently, so likelihoods on it differ from those on this dataset.

    See `ImageDataModule` for the arguments, the shapes and the binarization. In `<root>/omniglot-py` the drawings are
    expected as `{images_background,images_evaluation}/<alphabet>/characterNN/NNNN_NN.png`. The first `setup` takes some
    seconds to read them all, and saves the result there as `omniglot-28x28.pt` if the folder can be written. This file
    is made again when the drawings change or when it is damaged.

    Raises:
        FileNotFoundError: In `setup`, if drawings are missing.
        ValueError: In `setup`, if a drawing is damaged.

    Source: Lake, Salakhutdinov and Tenenbaum (2015), Human-level concept learning through probabilistic program
    induction, https://doi.org/10.1126/science.aab3050. Split and size: Burda, Grosse and Salakhutdinov (2016),
    Importance weighted autoencoders, section 5, https://arxiv.org/abs/1509.00519.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (1, 28, 28)
    seeded_split: ClassVar[bool] = True

    @property
    def folder(self) -> str:
        """The folder that holds the files."""
        return os.path.join(self.root, torchvision.datasets.Omniglot.folder)

    def fetch(self) -> None:
        """Unpack the zip files that are there, and download what is missing."""
        for part in PARTS:
            archive = os.path.join(self.folder, f"{part}.zip")
            if os.path.isfile(archive) and zipfile.is_zipfile(archive):
                if self._lacking(part, self._drawings(part)):
                    torchvision.datasets.utils.extract_archive(archive, self.folder)
            elif not os.path.isdir(os.path.join(self.folder, part)):
                torchvision.datasets.Omniglot(self.root, background=part == "images_background", download=True)

    def load(self) -> Splits:
        """Read the drawings, from the cache if it holds the same ones, and split them."""
        sizes: dict[str, int] = {}
        missing = []
        for part in PARTS:
            drawings = self._drawings(part)
            sizes |= drawings
            missing += self._lacking(part, drawings)
        if missing:
            raise self.not_found(self.folder, missing)
        # Nobody edits these files, so names and sizes identify them as well as contents do, and are read much faster.
        source = hashlib.blake2b(repr((CACHE_VERSION, sorted(sizes.items()))).encode()).hexdigest()
        images = self._read_cache(source)
        if images is None:
            images = self._convert(sorted(sizes))
            self._write_cache(source, images)

        generator = seeded_generator(self.seed, SPLIT)
        # Sorting noise gives every character a permutation of its own.
        order = torch.rand(len(images), DRAWINGS, generator=generator).argsort(1)
        images = images[torch.arange(len(images))[:, None], order].unsqueeze(2)
        train, test = images[:, :TRAIN_DRAWINGS].flatten(0, 1), images[:, TRAIN_DRAWINGS:].flatten(0, 1)
        train = train[torch.randperm(len(train), generator=generator)]
        validation = round(len(train) * 1345 / 24345)
        return Splits(train[validation:], train[:validation], test)

    def _drawings(self, part: str) -> dict[str, int]:
        """Return the size in bytes of each drawing of a part, by its path relative to the folder."""
        folder = Path(self.folder)
        found = {}
        for directory, _, names in os.walk(folder / part):
            for name in names:
                if name.endswith(".png"):
                    path = Path(directory, name)
                    found[path.relative_to(folder).as_posix()] = path.stat().st_size
        return found

    def _lacking(self, part: str, drawings: dict[str, int]) -> list[str]:
        """Say what is missing of a part: all of it, or the drawings that an interrupted unpacking left out."""
        if not drawings:
            return [f"{part}/<alphabet>/<character>/*.png"]
        archive = os.path.join(self.folder, f"{part}.zip")
        if os.path.isfile(archive) and zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                absent = {name for name in file.namelist() if name.endswith(".png")} - set(drawings)
            if absent:
                return [f"{len(absent)} of the drawings in {part}.zip, as {min(absent)}"]
        counts = Counter(os.path.dirname(path) for path in drawings)
        # Up to half of the characters is taken for a selection made on purpose; more should be the whole dataset.
        if len(counts) > PARTS[part] / 2 and len(counts) != PARTS[part]:
            return [f"characters in {part} (expected {PARTS[part]}, found {len(counts)})"]
        return [
            f"drawings of {character} (expected {DRAWINGS}, found {count})"
            for character, count in sorted(counts.items())
            if count != DRAWINGS
        ]

    def _convert(self, paths: list[str]) -> Tensor:
        """Return bytes of shape `(characters, DRAWINGS, 28, 28)`, where ink is 255, in the order of the paths."""
        ink = torch.stack([255 - _read_drawing(os.path.join(self.folder, path)) for path in paths])
        ink = ink.view(-1, DRAWINGS, 105, 105)
        return torch.cat([transforms.resize(c, self.image_shape[1:], antialias=True) for c in torch.split(ink, 64)])

    def _read_cache(self, source: str) -> Tensor | None:
        try:
            cache = torch.load(os.path.join(self.folder, CACHE), weights_only=True)
            images: Tensor = cache["images"]
            fits = cache["source"] == source and cache["digest"] == _digest(images)
        except Exception:  # no cache or a damaged one, which raises many kinds of error: it is made again
            return None
        return images if fits else None

    def _write_cache(self, source: str, images: Tensor) -> None:
        path = os.path.join(self.folder, CACHE)
        # Other processes may be doing the same, so each writes a file of its own and renames it: a rename is atomic,
        # so nobody reads half a file.
        temporary = Path(f"{path}.{uuid.uuid4().hex}.tmp")
        content = io.BytesIO()
        torch.save({"source": source, "digest": _digest(images), "images": images}, content)
        try:
            temporary.write_bytes(content.getbuffer())
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            warnings.warn(
                f"Omniglot: the converted images could not be kept in {os.path.abspath(path)!r} ({error}); "
                "they are converted again at every start, which takes some seconds",
                stacklevel=2,
            )


def _read_drawing(path: str) -> Tensor:
    try:
        with Image.open(path) as image:
            drawing: Tensor = transforms.pil_to_tensor(image.convert("L"))[0]
    except OSError as error:
        raise ValueError(
            f"Omniglot: {path!r} is damaged ({error}). Delete the folder and unpack it again, or download it with "
            "download=True (--data.download true)"
        ) from error
    if drawing.shape != (105, 105):
        raise ValueError(f"Omniglot: expected a drawing of 105×105 pixels, got {tuple(drawing.shape)} in {path!r}")
    return drawing


def _digest(images: Tensor) -> str:
    return hashlib.blake2b(images.numpy().tobytes()).hexdigest()
