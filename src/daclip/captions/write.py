"""Captions written row by row: a run that was stopped goes on, and no half row is ever read."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from daclip.captions.sources import Captioner
from daclip.data import list_photos, matched, split_folders, split_title, word_folders
from daclip.errors import DataError

HEADER = "filepath\ttitle\n"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A caption file to be written: its rows are a photo to name, the clean photo to describe, its word."""

    file: Path
    rows: list[tuple[Path, Path, str | None]]


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a run wrote: rows now, rows that were there, and rows or photos without a caption in all."""

    written: int
    kept: int
    without: int


def targets(root: Path, output: Path | None = None) -> list[Target]:
    """The caption files of a folder.

    For the published layout `root/daclip_{train,val}.csv`, whose rows name degraded photos; for any other
    folder of photos `root/captions.csv`, or `output`. Raises DataError for folders without photos, or an
    output for a layout of two splits.
    """
    folders = split_folders(root)
    if not folders:
        rows: list[tuple[Path, Path, str | None]] = [(photo, photo, None) for photo in list_photos(root)]
        return [Target(file=output or root / "captions.csv", rows=rows)]
    if output is not None and len(folders) > 1:
        raise DataError(
            f"{output}: one file for two splits", hint="they go to daclip_train.csv and daclip_val.csv"
        )
    return [
        Target(
            file=output or root / f"daclip_{split or 'train'}.csv",
            rows=[
                (degraded, clean, word)
                for word, inner in word_folders(folder).items()
                for degraded, clean in matched(inner)
            ],
        )
        for split, folder in folders.items()
    ]


def write(
    target: Target,
    captioner: Captioner,
    *,
    batch: int = 8,
    on_progress: Callable[[int, int], object] | None = None,
) -> Written:
    """Describe the photos of a target that have no row yet, `batch` clean photos at a time.

    A clean photo that stands behind several degraded ones (files that are links to one another too) is
    described once. Rows are appended with one synced write for each batch. Clean photos nobody described get
    no row; degraded ones get one without caption, since the degradation is known.
    """
    done = _go_on(target)
    names = {photo: _named(target, photo) for photo, _, _ in target.rows}
    known: dict[object, str | None] = {
        _identity(clean): done[names[photo]] for photo, clean, _ in target.rows if done.get(names[photo])
    }
    waiting = [row for row in target.rows if names[row[0]] not in done]
    finished, count = 0, 0
    without = sum(caption is None for caption in done.values())
    with target.file.open("ab", buffering=0) as file:
        for rows in _batches(waiting, known, batch):
            fresh = {_identity(clean): clean for _, clean, _ in rows if _identity(clean) not in known}
            if fresh:
                known.update(zip(fresh, captioner(list(fresh.values())), strict=True))
            lines = [_line(target, photo, known[_identity(clean)], word) for photo, clean, word in rows]
            file.write("".join(lines).encode())
            os.fsync(file.fileno())
            finished, count = finished + len(rows), count + sum(map(bool, lines))
            without += sum(known[_identity(clean)] is None for _, clean, _ in rows)
            if on_progress is not None:
                on_progress(finished, len(waiting))
    return Written(written=count, kept=len(target.rows) - len(waiting), without=without)


def _batches(
    rows: Sequence[tuple[Path, Path, str | None]], known: dict[object, str | None], size: int
) -> Iterator[list[tuple[Path, Path, str | None]]]:
    """Rows in order, in parts with at most `size` clean photos that are not yet described."""
    part: list[tuple[Path, Path, str | None]] = []
    fresh: set[object] = set()
    for row in rows:
        identity = _identity(row[1])
        if identity not in known and identity not in fresh and len(fresh) == size:
            yield part
            part, fresh = [], set()
        if identity not in known:
            fresh.add(identity)
        part.append(row)
    if part:
        yield part


def _go_on(target: Target) -> dict[str, str | None]:
    """The rows a file has, by photo; a half row at its end is cut off, and a new file gets its header."""
    path = target.file
    if not path.exists() or not path.stat().st_size:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(HEADER.encode())
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if not whole.decode("utf-8", "replace").startswith(HEADER):
        raise DataError(f"{path}: not a caption file of ours", hint="name another with -o")
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    rows = [line.partition("\t") for line in whole.decode("utf-8").splitlines()[1:]]
    return {name: split_title(title)[0] for name, _, title in rows}


def _line(target: Target, photo: Path, caption: str | None, word: str | None) -> str:
    """One row; none for a clean photo without a caption."""
    text = " ".join((caption or "").replace('"', "'").split())
    if word is not None:
        return f"{_named(target, photo)}\t{text}: {word}\n"
    if text and split_title(text)[1] is not None:  # would be read as a degradation
        text = text.replace(":", ",") + " in a photo"
    return f"{_named(target, photo)}\t{text}\n" if text else ""


def _named(target: Target, photo: Path) -> str:
    """The photo's path from the caption file, where it lies under its folder."""
    root = target.file.parent.resolve()
    path = photo.resolve() if not photo.is_symlink() else photo.absolute()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _identity(path: Path) -> object:
    """The same for two names of one file."""
    status = path.stat()
    return (status.st_dev, status.st_ino) if status.st_ino else path
