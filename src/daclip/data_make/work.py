"""Data sets of the published layout, made pair by pair in several processes; finished pairs are kept."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import cv2
import numpy as np
from jaxtyping import UInt8

from daclip import degradations, image
from daclip.data import Pixels8, Split, eight_bit, processes, read_pixels
from daclip.degradations import SEVERITIES, Settings
from daclip.errors import DaclipError, DataError
from daclip.vocabulary import CLEAN, WILD_IR

LINKED_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".tif", ".tiff"})
"""Kinds that the published code reads; clean photos of other kinds become PNG."""

SETTINGS_FILE = "daclip_make.json"


@dataclass(frozen=True, kw_only=True)
class Item:
    """One pair to be made: `root/split/word/{LQ,GT}/name.*`.

    Args:
        split, word, name: its place; `name` has no suffix.
        clean: the clean photo.
        degraded: the degraded one, where there is one; else it is made of the clean one.
        side: both are shrunk to a square of this side, where they are larger.
    """

    split: Split
    word: str
    name: str
    clean: Path
    degraded: Path | None = None
    side: int | None = None

    def places(self, root: Path) -> tuple[Path, Path]:
        """Where LQ and GT go, without suffix."""
        folder = root / self.split / self.word
        return folder / "LQ" / self.name, folder / "GT" / self.name


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How degraded photos are made.

    Args:
        settings: "paper" (one severity) or "wild".
        severity: range from which `wild` draws.
        seed: of all draws; each photo draws by its word and name alone, whatever else there is.
    """

    settings: Settings = "wild"
    severity: tuple[float, float] = SEVERITIES
    seed: int = 0

    def degrade(self, clean: Pixels8, item: Item) -> Pixels8:
        """The degraded photo of an item."""
        rng = np.random.default_rng([self.seed, crc32(f"{item.word}/{item.name}".encode())])
        severity = float(rng.uniform(*self.severity))
        pixels = clean.astype(np.float32) / np.float32(255)
        if item.word == WILD_IR:
            return eight_bit(degradations.wild_ir(pixels, rng).pixels)
        made = degradations.degrade(pixels, item.word, severity=severity, rng=rng, settings=self.settings)
        return eight_bit(made.pixels)


@dataclass(frozen=True, kw_only=True)
class Built:
    """What was done: pairs made now, pairs found finished, and photos that failed with a line for each."""

    made: int
    kept: int
    failed: tuple[str, ...]


Result = tuple[list[Item], Counter[str] | str]
"""The pairs of one clean photo with their counts, or with the line of their error."""


def build(
    items: Sequence[Item],
    root: Path,
    recipe: Recipe,
    *,
    workers: int = 1,
    on_progress: Callable[[int, int], object] | None = None,
) -> Built:
    """Make the pairs; files that are there already stay as they are. Told (pairs done, of how many).

    Each file appears complete or not at all, so a build that was stopped goes on where it was. Clean photos
    are hard links to the originals where that is possible. Raises DataError when two items have one place,
    or `root` was made by another recipe.
    """
    _check_places(items)
    _keep_settings(root, recipe)
    groups: dict[Path, list[Item]] = {}  # one clean photo is decoded once for all its words
    for item in items:
        groups.setdefault(item.clean, []).append(item)
    counts, failed, done = Counter[str](), list[str](), 0
    for group, result in _results(list(groups.values()), root, recipe, workers):
        done += len(group)
        if isinstance(result, str):
            failed.append(result)
        else:
            counts.update(result)
        if on_progress is not None:
            on_progress(done, len(items))
    return Built(made=counts["made"], kept=counts["kept"], failed=tuple(failed))


def _check_places(items: Sequence[Item]) -> None:
    places = Counter((item.split, item.word, item.name) for item in items)
    if double := [place for place, count in places.items() if count > 1]:
        raise DataError(f"{'/'.join(double[0])}: two photos for one place", hint="rename one of them")


def _keep_settings(root: Path, recipe: Recipe) -> None:
    """Write the recipe beside the data, or compare it with the one that is there."""
    path, wanted = root / SETTINGS_FILE, json.loads(json.dumps(asdict(recipe)))
    if not path.exists():
        _write((json.dumps(wanted, indent=1) + "\n").encode(), path)
        return
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})", hint="remove it to start over") from error
    if found != wanted:
        changed = ", ".join(name for name in wanted if found.get(name) != wanted[name])
        raise DataError(f"{root}: made with another {changed}", hint="use the same again, or another folder")


def _results(groups: list[list[Item]], root: Path, recipe: Recipe, workers: int) -> Iterator[Result]:
    """Each group with its counts, or with the line of its error, as they are done."""
    if workers <= 1:
        for group in groups:
            yield group, _make(group, root, recipe)
        return
    with processes.pool(workers) as pool:
        try:
            futures = {pool.submit(_make, group, root, recipe): group for group in groups}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker was killed, perhaps for lack of memory",
                hint="use fewer --workers; what is done stays",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _make(group: list[Item], root: Path, recipe: Recipe) -> Counter[str] | str:
    """The pairs of one clean photo: how many were made and kept, or what went wrong."""
    try:
        photo = _Source(group[0])
        return Counter("made" if _pair(item, root, recipe, photo) else "kept" for item in group)
    except DaclipError as error:
        path = getattr(error, "path", None)
        return f"{path or group[0].clean}: {error}"


class _Source:
    """A clean photo, decoded when first needed, and the file of it that the published code can read."""

    def __init__(self, item: Item) -> None:
        self._path, self._side = item.clean, item.side
        self._pixels: Pixels8 | None = None
        self.file: Path | None = item.clean if self._is_fit() else None

    @property
    def pixels(self) -> Pixels8:
        if self._pixels is None:
            self._pixels = shrunk(read_pixels(self._path), self._side)
        return self._pixels

    def _is_fit(self) -> bool:
        suffix = self._path.suffix.lower()
        if suffix in (".bmp", ".ppm"):
            return self._side is None
        photo = image.read(self._path)
        is_plain = suffix in LINKED_SUFFIXES and photo.bits == 8 and not photo.has_alpha
        return is_plain and self._side in (None, photo.width) and self._side in (None, photo.height)


def shrunk(pixels: Pixels8, side: int | None) -> UInt8[np.ndarray, "_ _ 3"]:
    """The pixels as a square of this side, by area averaging, unless they have it or no side is named."""
    if side is None or pixels.shape[:2] == (side, side):
        return pixels
    return np.asarray(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def _pair(item: Item, root: Path, recipe: Recipe, source: _Source) -> bool:
    """Make one pair; False where it is there already. GT comes first, LQ completes the pair."""
    degraded, clean = item.places(root)
    if _finished(degraded) and _finished(clean):
        return False
    if not (there := _finished(clean)):
        there = write_png(source.pixels, clean) if source.file is None else put(source.file, clean)
    source.file = source.file or there
    if _finished(degraded):
        return True
    if item.degraded is not None:
        put(item.degraded, degraded)
    elif item.word == CLEAN:
        put(source.file, degraded)
    else:
        write_png(recipe.degrade(source.pixels, item), degraded)
    return True


def _finished(place: Path) -> Path | None:
    """The file at a place given without suffix."""
    for suffix in (".png", ".jpg", *sorted(LINKED_SUFFIXES)):
        path = place.with_name(place.name + suffix)
        if path.exists():
            return path
    return None


def put(source: Path, place: Path) -> Path:
    """The file at this place (named without suffix): a hard link, or a copy where there are none."""
    target = place.with_name(place.name + source.suffix.lower())
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        with image.new_file(target, overwrite=True) as descriptor, source.open("rb") as file:
            shutil.copyfileobj(file, os.fdopen(descriptor, "wb", closefd=False))
    return target


def write_png(pixels: Pixels8, place: Path) -> Path:
    """The pixels as a PNG at this place (named without suffix)."""
    target = place.with_name(place.name + ".png")
    # level 3 of OpenCV: a quarter of the time of libvips' default for a tenth more bytes
    coded = cv2.imencode(".png", pixels[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 3])[1]
    _write(coded.tobytes(), target)
    return target


def _write(content: bytes, path: Path) -> None:
    with (
        image.new_file(path, overwrite=True) as descriptor,
        os.fdopen(descriptor, "wb", closefd=False) as file,
    ):
        file.write(content)
