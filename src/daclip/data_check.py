"""`daclip data check`: what is wrong with a data set, before a training run finds out."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import imagehash
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from daclip.data import (
    PAPER_COUNTS,
    Split,
    is_photo_name,
    list_photos,
    match,
    processes,
    read_pixels,
    read_titles,
    split_folders,
    word_folders,
)
from daclip.errors import DaclipError, DataError
from daclip.vocabulary import DEGRADATIONS

Kind = Literal["pair", "size", "unreadable", "duplicate", "classes", "leak", "captions"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong. An error spoils training or its figures; a warning may be meant so."""

    kind: Kind
    is_error: bool
    where: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Class:
    """One word of one split: pairs found, pairs in the paper's Table 1 (None: not a word of it), findings."""

    split: str
    word: str
    pairs: int
    paper: int | None
    errors: int
    warnings: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a data set holds, and what is wrong with it."""

    root: Path
    classes: list[Class]
    findings: list[Finding]

    @property
    def errors(self) -> list[Finding]:
        """The findings that are errors."""
        return [finding for finding in self.findings if finding.is_error]


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look at a photo tells: size, hashes of bytes and of appearance, or why it is unreadable."""

    size: tuple[int, int] = (0, 0)
    digest: str = ""
    bits: UInt8[np.ndarray, "2 64"] | None = None
    error: str = ""


def look(path: Path, *, appearance: bool = True) -> Look:
    """Decode a photo; its appearance is the 64-bit DCT hash (pHash) of it and of its mirror image."""
    try:
        pixels = read_pixels(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (DaclipError, OSError) as error:
        return Look(error=str(error))
    picture = Image.fromarray(pixels).convert("L")
    if not appearance:
        return Look(size=picture.size, digest=digest)
    hashes = [imagehash.phash(each).hash for each in (picture, ImageOps.mirror(picture))]
    bits = np.stack([np.asarray(each, np.uint8).ravel() for each in hashes])
    return Look(size=picture.size, digest=digest, bits=bits)


def check(
    root: Path,
    *,
    distance: int = 6,
    workers: int = 1,
    on_progress: Callable[[int, int], object] | None = None,
) -> Report:
    """Look at every photo of `root/{train,val}/<word>/{LQ,GT}`, or of `root/<word>/{LQ,GT}`.

    Args:
        root: of the data set.
        distance: clean photos of train and val whose perceptual hashes differ in at most so many of 64 bits,
            mirrored or not, are taken for the same.
        workers: processes that decode.
        on_progress: told (photos seen, of how many).

    Raises DataError when there are no such folders.
    """
    folders = split_folders(root)
    if not folders:
        raise DataError(
            f"{root}: no <word>/LQ and <word>/GT folders in it",
            hint="the layout is ROOT/train/<word>/LQ, ROOT/train/<word>/GT and the same under ROOT/val",
        )
    photos = {
        (split, word, side): _listed(inner / side)
        for split, folder in folders.items()
        for word, inner in word_folders(folder).items()
        for side in ("LQ", "GT")
    }
    looks = _looks(photos, workers, on_progress)
    findings: list[Finding] = []
    classes: list[Class] = []
    for split, folder in folders.items():
        findings += _of_split(split, folder, photos)
        for word, inner in word_folders(folder).items():
            found, pairs = _of_word(inner, photos[split, word, "LQ"], photos[split, word, "GT"], looks, root)
            paper = PAPER_COUNTS["val" if split == "val" else "train"].get(word)
            errors = sum(finding.is_error for finding in found)
            classes.append(
                Class(
                    split=split,
                    word=word,
                    pairs=pairs,
                    paper=paper,
                    errors=errors,
                    warnings=len(found) - errors,
                )
            )
            findings += found
    findings += _leaks(photos, looks, distance, root)
    findings += [finding for split in ("train", "val") for finding in _captions(root, split, photos)]
    return Report(root=root, classes=classes, findings=findings)


Photos = dict[tuple[str, str, str], list[Path]]
"""The photos of each split, word and side (LQ or GT)."""


def _listed(folder: Path) -> list[Path]:
    """The photos of a folder; none where it is missing or empty."""
    if not folder.is_dir() or not any(is_photo_name(path.name) for path in folder.rglob("*")):
        return []
    return list_photos(folder)


def _looks(
    photos: Photos, workers: int, on_progress: Callable[[int, int], object] | None
) -> dict[Path, Look]:
    """A look at each photo; files that are links to one another are decoded once."""
    files: dict[object, list[Path]] = {}
    hashed: set[object] = set()
    for (_, _, side), paths in photos.items():
        for path in paths:
            status = path.stat()
            file = (status.st_dev, status.st_ino) if status.st_ino else path
            files.setdefault(file, []).append(path)
            if side == "GT":
                hashed.add(file)
    looks: dict[Path, Look] = {}
    asked = [(paths[0], file in hashed) for file, paths in files.items()]
    total = sum(map(len, files.values()))
    for paths, seen in zip(files.values(), _seen(asked, workers), strict=True):
        looks |= dict.fromkeys(paths, seen)
        if on_progress is not None:
            on_progress(len(looks), total)
    return looks


def _seen(asked: list[tuple[Path, bool]], workers: int) -> Iterator[Look]:
    if workers <= 1:
        yield from map(_look, asked)
        return
    with processes.pool(workers) as pool:
        yield from pool.map(_look, asked, chunksize=16)


def _look(asked: tuple[Path, bool]) -> Look:
    return look(asked[0], appearance=asked[1])


# ---- each kind of finding


def _of_split(split: str, folder: Path, photos: Photos) -> list[Finding]:
    words = [word for each, word, side in photos if each == split and side == "LQ"]
    where = split or str(folder)
    found: list[Finding] = []
    if len(words) == 1:
        message = (
            f"only {words[0]}: fine for a restorer of one task, but an encoder has nothing to tell apart "
            "(its loss stays at the logarithm of the batch size)"
        )
        found.append(Finding(kind="classes", is_error=False, where=where, message=message))
    if unknown := [word for word in words if word not in DEGRADATIONS]:
        message = f"words beyond the paper's ten: {', '.join(unknown)}; published weights do not know them"
        found.append(Finding(kind="classes", is_error=False, where=where, message=message))
    return found


def _of_word(
    folder: Path, degraded: list[Path], clean: list[Path], looks: dict[Path, Look], root: Path
) -> tuple[list[Finding], int]:
    """What is wrong with the photos of one word, and how many pairs it has."""
    name = folder.relative_to(root).as_posix()
    found = [
        Finding(
            kind="unreadable", is_error=True, where=str(path.relative_to(root)), message=looks[path].error
        )
        for path in (*degraded, *clean)
        if looks[path].error
    ]
    pairs: list[tuple[Path, Path]] = []
    if not degraded or not clean:
        message = "no photos in " + " and ".join(
            side for side, paths in (("LQ", degraded), ("GT", clean)) if not paths
        )
        found.append(Finding(kind="pair", is_error=True, where=name, message=message))
    else:
        pairs, alone = _matched(degraded, clean, name)
        found += [
            Finding(kind="pair", is_error=True, where=str(path.relative_to(root)), message="has no partner")
            for path in alone
        ]
    found += [finding for pair in pairs if (finding := _sizes(pair, looks, root))]
    found += _duplicates(degraded, looks, root)
    return found, len(pairs)


def _matched(
    degraded: list[Path], clean: list[Path], name: str
) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Pairs, and photos without a partner."""
    try:
        return match(degraded, clean, source=name), []
    except DataError:
        stems = {path.stem: path for path in clean}
        pairs = [(path, stems[path.stem]) for path in degraded if path.stem in stems]
        paired = {path for pair in pairs for path in pair}
        return pairs, [path for path in (*degraded, *clean) if path not in paired]


def _sizes(pair: tuple[Path, Path], looks: dict[Path, Look], root: Path) -> Finding | None:
    (width, height), (clean_width, clean_height) = (looks[path].size for path in pair)
    if (width, height) == (clean_width, clean_height) or not (width and clean_width):
        return None
    message = f"{width} x {height} pixels, but its clean photo has {clean_width} x {clean_height}"
    return Finding(kind="size", is_error=True, where=str(pair[0].relative_to(root)), message=message)


def _duplicates(paths: list[Path], looks: dict[Path, Look], root: Path) -> list[Finding]:
    """Degraded photos that are the same file; clean ones may be (Rain100H has nine of each)."""
    first: dict[str, Path] = {}
    found: list[Finding] = []
    for path in paths:
        digest = looks[path].digest
        if digest and first.setdefault(digest, path) != path:
            message = f"the same file as {first[digest].relative_to(root)}"
            where = str(path.relative_to(root))
            found.append(Finding(kind="duplicate", is_error=False, where=where, message=message))
    return found


def _leaks(photos: Photos, looks: dict[Path, Look], distance: int, root: Path) -> list[Finding]:
    """Clean photos of val that look like one of train, in any word: figures measured on them mean little."""
    train, val = (_distinct(photos, split, looks) for split in ("train", "val"))
    if not train or not val:
        return []
    known = np.stack([_signs(looks[path])[0] for path in train])
    found: list[Finding] = []
    for path in val:
        # signs agree minus signs that differ, so the distance is half of what is missing from 64
        away = ((64 - known @ _signs(looks[path]).T) / 2).min(axis=1)
        nearest = int(away.argmin())
        if away[nearest] <= distance:
            message = f"looks like {train[nearest].relative_to(root)} ({away[nearest]:.0f} of 64 bits differ)"
            where = str(path.relative_to(root))
            found.append(Finding(kind="leak", is_error=True, where=where, message=message))
    return found


def _distinct(photos: Photos, split: Split, looks: dict[Path, Look]) -> list[Path]:
    """The clean photos of a split, those of the same bytes once."""
    first: dict[str, Path] = {}
    for (each, _, side), paths in photos.items():
        for path in paths if (each, side) == (split, "GT") else ():
            if looks[path].bits is not None:
                first.setdefault(looks[path].digest, path)
    return list(first.values())


def _signs(seen: Look) -> Float32[np.ndarray, "2 64"]:
    """The bits of the hashes as 1 and -1."""
    assert seen.bits is not None
    return seen.bits.astype(np.float32) * 2 - 1


def _captions(root: Path, split: str, photos: Photos) -> list[Finding]:
    """What is wrong with `root/daclip_{split}.csv`, where it is there."""
    file = root / f"daclip_{split}.csv"
    if not file.is_file():
        return []
    try:
        rows = read_titles(file)
    except DataError as error:
        return [Finding(kind="captions", is_error=True, where=file.name, message=str(error))]
    there = {
        path.resolve()
        for key, paths in photos.items()
        if key[0] == split and key[2] == "LQ"
        for path in paths
    }
    named = {row.file.resolve() for row in rows}
    found: list[Finding] = []
    if missing := len(there - named):
        message = f"{missing:,} of {len(there):,} photos have no row"
        found.append(Finding(kind="captions", is_error=False, where=file.name, message=message))
    wrong = [row for row in rows if row.word != row.file.parent.parent.name]
    if wrong:
        message = (
            f"{len(wrong):,} rows name another degradation than their folder ({wrong[0].file.name}, ...)"
        )
        found.append(Finding(kind="captions", is_error=True, where=file.name, message=message))
    return found
