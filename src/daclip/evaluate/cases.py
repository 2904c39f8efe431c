"""Photos to measure on: degraded ones with their truth, or without any."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from daclip import image
from daclip.errors import DataError
from daclip.image import Photo
from daclip.metrics import Pixels8

UNKNOWN = "unknown"
"""The degradation of photos of which nobody says what is wrong."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One degraded photo and its truth, read when they are needed.

    Args:
        degradation: what is wrong with it, by the name of its folder; "clean" for nothing.
        name: of the photo, for messages; no two cases share one.
        files: what it is read from, for the hash of the data.
        read: the degraded photo and the pixels of the clean one, of the same size, None where there is
            none; raises PhotoError or DataError.
    """

    degradation: str
    name: str
    files: tuple[Path, ...]
    read: Callable[[], tuple[Photo, Pixels8 | None]]


def pairs(root: Path, *, only: Sequence[str] = (), limit: int | None = None) -> list[Case]:
    """The cases of the published layout `root/<degradation>/{LQ,GT}/<name>.*`; suffixes may differ.

    A photo without its truth in GT, or that lies in `root` itself, is restored and not scored. `limit` is for
    each degradation. Raises DataError when nothing is found.
    """
    folders = sorted(path.parent for path in root.glob("*/LQ") if path.is_dir())
    if only and (absent := sorted(set(only) - {folder.name for folder in folders})):
        raise DataError(f"{root}: no folder {absent[0]}/LQ", hint="see --only")
    cases: list[Case] = []
    for folder in folders:
        if only and folder.name not in only:
            continue
        truths = {path.stem: path for path in _in_folder(folder / "GT")}
        cases += [
            _pair(folder, path, truths[path.stem]) if path.stem in truths else _single(folder.name, path)
            for path in image.find_photos([folder / "LQ"])[:limit]
        ]
    if not folders and root.is_dir():
        cases = [_single(UNKNOWN, path) for path in image.find_photos([root])[:limit]]
    if not cases:
        raise DataError(
            f"{root}: no photos in <degradation>/LQ", hint="name the folder that holds rainy/LQ, rainy/GT ..."
        )
    return cases


def _in_folder(folder: Path) -> list[Path]:
    return image.find_photos([folder]) if folder.is_dir() else []


def _pair(folder: Path, degraded: Path, truth: Path) -> Case:
    def read() -> tuple[Photo, Pixels8]:
        photo, clean = image.read(degraded), image.read(truth)
        pixels = clean.crop_8bit(0, 0, clean.height, clean.width)
        if (photo.height, photo.width) != pixels.shape[:2]:
            raise DataError(
                f"{photo.width} x {photo.height} pixels, but {truth} has {clean.width} x {clean.height}",
                hint="compare photos of one size",
            )
        return photo, pixels

    name = f"{folder.name}/LQ/{degraded.name}"
    return Case(degradation=folder.name, name=name, files=(degraded, truth), read=read)


def _single(degradation: str, path: Path) -> Case:
    name = f"{degradation}/{path.name}"
    return Case(degradation=degradation, name=name, files=(path,), read=lambda: (image.read(path), None))


def lonely(cases: Sequence[Case]) -> list[str]:
    """The names of photos that lack their truth beside others of their degradation that have one."""
    has_truths = {case.degradation for case in cases if len(case.files) > 1}
    return [case.name for case in cases if case.degradation in has_truths and len(case.files) == 1]


def file_name(name: str) -> str:
    """A name of photo or method without what means something in a path."""
    return "".join(
        letter if letter.isalnum() or letter in "-_." else "_" for letter in name.replace(": ", "-")
    )


def file_sha256(path: Path) -> str:
    """The hash of a file's bytes."""
    status = path.stat()
    return _bytes_sha256(path, status.st_size, status.st_mtime_ns)


@cache  # a run asks for each photo when it starts, when it is done and for the caption
def _bytes_sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_sha256(cases: Sequence[Case]) -> str:
    """A hash that names the data: of degradation, name and bytes of every file."""
    return files_sha256((case.degradation, path) for case in cases for path in case.files)


def files_sha256(files: Iterable[tuple[str, Path]]) -> str:
    """A hash of files, each with a word about it: of the words, their names and bytes."""
    digest = hashlib.sha256()
    for word, path in files:
        content = file_sha256(path) if path.is_file() else "absent"
        digest.update(f"{word}/{path.parent.name}/{path.name} {content}\n".encode())
    return digest.hexdigest()
