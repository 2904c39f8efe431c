"""Finding photos: files, folders and patterns as a user types them."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from daclip.image import sniff


def find_photos(inputs: Sequence[str | Path], *, recursive: bool = False) -> list[Path]:
    """The photos that the inputs name, in the order given, sorted inside folders and patterns, each once.

    A file that is named is always taken, even one that is missing or no picture: `read` says what is wrong.
    In folders, files count that are pictures by content, or by name (so that a damaged one is reported and
    not skipped); hidden files and results of earlier runs (`photo.restored.jpg`) do not. A folder that
    cannot be listed stands in the list itself, for `read` to report.
    """
    photos: dict[object, Path] = {}
    for name in inputs:
        for path in _expand(Path(name).expanduser()):
            found = _in_folder(path, recursive=recursive, seen=set()) if path.is_dir() else [path]
            for photo in found:
                photos.setdefault(_identity(photo), photo)
    return list(photos.values())


def _expand(path: Path) -> Iterable[Path]:
    """The path itself where it exists or is no pattern; otherwise what the pattern matches, sorted."""
    if os.path.lexists(path) or not glob.has_magic(str(path)):
        return [path]
    return [Path(match) for match in sorted(glob.glob(str(path), recursive=True))] or [path]


def _in_folder(folder: Path, *, recursive: bool, seen: set[object]) -> Iterator[Path]:
    """Photos in the folder, then in its folders; each folder once, so that circular links end."""
    identity = _identity(folder)
    if identity in seen:
        return
    seen.add(identity)
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        yield folder
        return
    visible = [entry for entry in entries if not entry.name.startswith(".")]
    folders = [entry for entry in visible if entry.is_dir()]
    yield from (
        entry
        for entry in visible
        if entry not in folders and ".restored." not in entry.name and is_photo(entry)
    )
    if recursive:
        for inner in folders:
            yield from _in_folder(inner, recursive=True, seen=seen)


def is_photo(path: Path) -> bool:
    """Whether a file is a picture by its name, or by its first bytes."""
    if path.suffix.lower() in sniff.READABLE_SUFFIXES or path.suffix.lower() in sniff.RAW_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return sniff.kind_of(file.read(sniff.HEAD_BYTES), path) is not None
    except OSError:
        return False


def _identity(path: Path) -> object:
    """The same for two names of one file."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return path
    return (status.st_dev, status.st_ino)
