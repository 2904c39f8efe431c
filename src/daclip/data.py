"""Data sets to read: plain folders of clean photos degraded on the fly, and folders of degraded / clean pairs.

A data set is a function from an index to a sample, without state: draw i is the same on every machine, for any number
of workers, and after any interruption.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from jaxtyping import UInt8

from daclip import degradations, image
from daclip.errors import DataError
from daclip.vocabulary import DEGRADATIONS

Pixels8 = UInt8[np.ndarray, "h w 3"]

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".ppm"})


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A degraded photo, its clean photo (same size), and what is wrong with it (nothing: clean)."""

    degraded: Pixels8
    clean: Pixels8
    names: tuple[str, ...]


class DataSet(Protocol):
    """Anything training draws samples from."""

    def draw(self, index: int) -> Sample:
        """The sample of an index; any index from 0 is valid."""
        ...


def list_photos(root: Path) -> list[Path]:
    """All photos under a folder, by suffix, sorted by relative path."""
    if not root.is_dir():
        raise DataError(f"{root}: not a folder", hint="name a folder of photos")
    found = [path for path in root.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES]
    if not found:
        raise DataError(f"{root}: no photos in it", hint=f"known kinds: {' '.join(sorted(PHOTO_SUFFIXES))}")
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def split(photos: Sequence[Path], *, held_out: int = 20) -> tuple[list[Path], list[Path]]:
    """Photos to train on and photos held out: about one in `held_out`, chosen by the hash of the file name.

    Adding or removing photos never moves another one to the other side.
    """
    train: list[Path] = []
    val: list[Path] = []
    for path in photos:
        number = int.from_bytes(hashlib.sha256(path.name.encode()).digest()[:4], "big")
        (val if number % held_out == 0 else train).append(path)
    return train, val


@dataclass(frozen=True, kw_only=True)
class CleanPhotos:
    """Clean photos, degraded on the fly.

    Args:
        photos: clean photos.
        region: side in pixels of the square cut out, degraded as a whole.
        seed: of all draws.
        names, weights: degradations to draw, and their relative shares.
        clean_share, mixture_share: shares of untouched photos and of mixtures of two or three.
        paper_share: share of single degradations made by the paper's fixed protocol.
        shrink_share: share of regions shrunk from a larger one, for other scales of the same content.
    """

    photos: Sequence[Path]
    region: int = 256
    seed: int = 0
    names: tuple[str, ...] = DEGRADATIONS
    weights: tuple[float, ...] | None = None
    clean_share: float = 0.1
    mixture_share: float = 0.2
    paper_share: float = 0.2
    shrink_share: float = 0.3
    _cache: dict[int, Pixels8] = field(default_factory=dict[int, Pixels8], repr=False)

    def draw(self, index: int) -> Sample:
        """The sample of an index: photo, cut, flips and degradation all follow from (seed, index)."""
        rng = np.random.default_rng([self.seed, index])
        clean = self._region(rng)
        pixels = clean.astype(np.float32) / 255
        if rng.random() < self.paper_share:
            name = str(rng.choice(self.names, p=self._shares()))
            done = degradations.degrade(pixels, name, severity=1.0, rng=rng, settings="paper")
        else:
            done = degradations.wild(
                pixels,
                rng,
                clean_share=self.clean_share,
                mixture_share=self.mixture_share,
                names=self.names,
                weights=self.weights,
            )
        names: tuple[str, ...] = tuple(done.record["names"])
        return Sample(degraded=eight_bit(done.pixels), clean=clean, names=names)

    def _shares(self) -> list[float] | None:
        return [w / sum(self.weights) for w in self.weights] if self.weights else None

    def _photo(self, number: int) -> Pixels8:
        if number not in self._cache:
            self._cache[number] = read_pixels(self.photos[number])
        return self._cache[number]

    def _region(self, rng: np.random.Generator) -> Pixels8:
        photo = self._photo(int(rng.integers(len(self.photos))))
        height, width = photo.shape[:2]
        side = self.region
        if rng.random() < self.shrink_share:
            side = int(side * rng.uniform(1.0, 2.0))
        side = min(side, height, width)
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        cut = photo[top : top + side, left : left + side]
        if side != self.region:
            cut = cv2.resize(cut, (self.region, self.region), interpolation=cv2.INTER_AREA)
        if rng.random() < 0.5:
            cut = cut[:, ::-1]
        if rng.random() < 0.1:
            cut = np.rot90(cut, int(rng.integers(1, 4)))
        return np.ascontiguousarray(cut)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The published layout `root/<word>/{LQ,GT}/*`, pairs by sorted file name; balanced by word as in the paper.

    Args:
        root: folder with one folder per word.
        region: side of the square cut out of both; photos with a shorter side give smaller squares.
        seed: of all draws.
    """

    root: Path
    region: int = 256
    seed: int = 0

    def pairs(self) -> dict[str, list[tuple[Path, Path]]]:
        """The (degraded, clean) files of each word. Raises DataError when a word's folders do not match."""
        found: dict[str, list[tuple[Path, Path]]] = {}
        for folder in sorted(path for path in self.root.iterdir() if (path / "LQ").is_dir()):
            degraded, clean = (
                sorted((folder / side).iterdir(), key=lambda path: path.stem) for side in ("LQ", "GT")
            )
            if [path.stem for path in degraded] != [path.stem for path in clean]:
                raise DataError(f"{folder}: LQ and GT do not hold the same names")
            found[folder.name] = list(zip(degraded, clean, strict=True))
        if not found:
            raise DataError(f"{self.root}: no <word>/LQ and <word>/GT folders in it")
        return found

    def draw(self, index: int) -> Sample:
        """Index modulo the number of words picks the word; the pair is drawn uniformly among its pairs."""
        pairs = self.pairs()
        rng = np.random.default_rng([self.seed, index])
        name = list(pairs)[index % len(pairs)]
        degraded, clean = (read_pixels(path) for path in pairs[name][int(rng.integers(len(pairs[name])))])
        height, width = clean.shape[:2]
        side = min(self.region, height, width)
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        cut = (slice(top, top + side), slice(left, left + side))
        return Sample(degraded=degraded[cut], clean=clean[cut], names=(name,))


def read_pixels(path: Path) -> Pixels8:
    """All pixels of a photo as 8-bit sRGB."""
    photo = image.read(path)
    return eight_bit(photo.crop(0, 0, photo.height, photo.width))


def eight_bit(pixels: np.ndarray) -> Pixels8:
    """Pixels in [0, 1] rounded to 8 bits."""
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
