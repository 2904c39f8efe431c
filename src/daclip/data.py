"""Data sets to read: folders of clean photos degraded on the fly, and folders of degraded / clean pairs.

A data set is a function from an index to a sample: draw i is the same on every machine, for any number of
workers, and after any interruption.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

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


@runtime_checkable
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
        cache_bytes: decoded photos kept in memory, in each worker.
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
    cache_bytes: int = 2 << 30
    _cache: dict[int, Pixels8] = field(default_factory=dict[int, Pixels8], init=False, repr=False)

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
        if number in self._cache:
            return self._cache[number]
        pixels = read_pixels(self.photos[number])
        # photos are drawn evenly, so the first ones are as good to keep as any
        if sum(kept.nbytes for kept in self._cache.values()) + pixels.nbytes <= self.cache_bytes:
            self._cache[number] = pixels
        return pixels

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
    """The published layout `root/<word>/{LQ,GT}/*`, pairs by file name; balanced by word as in the paper.

    Args:
        root: folder with one folder per word.
        region: side of the square cut out of both; photos with a shorter side give smaller squares.
        seed: of all draws.
    """

    root: Path
    region: int = 256
    seed: int = 0

    @cached_property
    def pairs(self) -> dict[str, list[tuple[Path, Path]]]:
        """The (degraded, clean) files of each word, listed once.

        Raises DataError when there are none, or a word's folders do not hold the same names.
        """
        folders = sorted(path.parent for path in self.root.glob("*/LQ") if path.is_dir())
        if not folders:
            raise DataError(f"{self.root}: no <word>/LQ and <word>/GT folders in it")
        return {folder.name: _pairs(folder) for folder in folders}

    def draw(self, index: int) -> Sample:
        """Index modulo the number of words picks the word; the pair is drawn uniformly among its pairs."""
        rng = np.random.default_rng([self.seed, index])
        name = list(self.pairs)[index % len(self.pairs)]
        paths = self.pairs[name][int(rng.integers(len(self.pairs[name])))]
        degraded, clean = (read_pixels(path) for path in paths)
        if degraded.shape != clean.shape:
            raise DataError(f"{paths[0]}: {_size(degraded)} pixels, but its clean photo has {_size(clean)}")
        height, width = clean.shape[:2]
        side = min(self.region, height, width)
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        cut = (slice(top, top + side), slice(left, left + side))
        return Sample(degraded=degraded[cut], clean=clean[cut], names=(name,))


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    """The pairs of one word, sorted by file name without suffix."""
    degraded, clean = ({path.stem: path for path in list_photos(folder / side)} for side in ("LQ", "GT"))
    if alone := sorted(set(degraded) ^ set(clean)):
        raise DataError(
            f"{folder}: {len(alone)} photos are in LQ or GT alone ({alone[0]}, ...)",
            hint="each photo needs its pair under the same name",
        )
    return [(degraded[stem], clean[stem]) for stem in sorted(degraded)]


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]}"


def read_pixels(path: Path) -> Pixels8:
    """All pixels of a photo as 8-bit sRGB."""
    photo = image.read(path)
    return eight_bit(photo.crop(0, 0, photo.height, photo.width))


def eight_bit(pixels: Float32[np.ndarray, "h w 3"]) -> Pixels8:
    """Pixels in [0, 1] rounded to 8 bits."""
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
