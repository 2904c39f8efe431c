"""A data set of the published layout made of any folder of photos: each photo with each degradation."""

from collections.abc import Sequence
from pathlib import Path

from daclip.data import is_held_out, list_photos
from daclip.data_make.work import Item
from daclip.errors import DataError
from daclip.vocabulary import DEGRADATIONS


def plan(photos: Path, *, words: Sequence[str] = DEGRADATIONS, held_out: int = 20) -> list[Item]:
    """An item for each photo and word; about one photo in `held_out` goes to val, by the hash of its name.

    Names follow the folders inside `photos`, joined by dashes.
    """
    paths = list_photos(photos)
    if len(paths) < 2:
        raise DataError(f"{photos}: a single photo", hint="one is needed to train on, one to validate on")
    names = _names(paths, photos)
    val = {path for path in paths if is_held_out(path.name, one_in=held_out)} or {paths[0]}
    return [
        Item(split="val" if path in val else "train", word=word, name=names[path], clean=path)
        for path in paths
        for word in words
    ]


def _names(paths: Sequence[Path], root: Path) -> dict[Path, str]:
    """A name for each photo; those that differ in the suffix alone get it into their names."""
    names = {path: "-".join(path.relative_to(root).with_suffix("").parts) for path in paths}
    taken = list(names.values())
    double = {name for name in taken if taken.count(name) > 1} if len(set(taken)) < len(taken) else set()
    return {
        path: f"{name}-{path.suffix[1:].lower()}" if name in double else name for path, name in names.items()
    }
