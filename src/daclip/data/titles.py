"""Caption files: `filepath` and `title` columns, a title being "caption: degradation" (PAPER 1.3)."""

import csv
from dataclasses import dataclass
from pathlib import Path

from daclip.data.pairs import Pair, matched
from daclip.errors import DataError
from daclip.vocabulary import CLEAN, DEGRADATIONS


@dataclass(frozen=True, kw_only=True)
class Title:
    """One row: the photo, its caption (None: not captioned), the word (None: a clean photo's caption)."""

    file: Path
    caption: str | None
    word: str | None


def read_titles(path: Path) -> list[Title]:
    """The rows of a caption file, separated by tabs or commas.

    Paths count from the caption file's folder, from here, or, where a data set was moved, by their last four
    parts. Raises DataError for other columns, a file without rows, or photos that are not there.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a caption file ({error})") from error
    header = text.partition("\n")[0]
    reader = csv.DictReader(text.splitlines(), delimiter="\t" if "\t" in header else ",")
    if not {"filepath", "title"} <= set(reader.fieldnames or ()):
        raise DataError(
            f"{path}: its columns are {', '.join(reader.fieldnames or ()) or 'missing'}",
            hint="a caption file has the columns filepath and title",
        )
    rows = [_title(path, row["filepath"], row["title"] or "") for row in reader]
    if not rows:
        raise DataError(f"{path}: no rows in it")
    if gone := [row.file for row in rows if not row.file.is_file()]:
        raise DataError(f"{path}: {len(gone)} of its photos are not there ({gone[0]}, ...)")
    return rows


def _title(path: Path, file: str, title: str) -> Title:
    place = _found(path.parent, file)
    caption, word = split_title(title, folder=place.parent.parent.name)
    return Title(file=place, caption=caption, word=word)


def split_title(title: str, *, folder: str = "") -> tuple[str | None, str | None]:
    """Caption and word of a title, parted at its last ": " where a known word (or `folder`) follows.

    published: parted at every ": ", which fails for captions that hold one.

    >>> split_title("a sign that says: stop: hazy")
    ('a sign that says: stop', 'hazy')
    >>> split_title("a sign that says: stop")
    ('a sign that says: stop', None)
    """
    caption, colon, tail = title.strip().rpartition(":")
    words = [part.strip() for part in tail.split(",")]
    if (colon or title.strip() in DEGRADATIONS) and all(
        word in (*DEGRADATIONS, CLEAN) or (word and tail.strip() == folder) for word in words
    ):
        return caption.strip() or None, ", ".join(words)
    return title.strip() or None, None


def _found(root: Path, file: str) -> Path:
    places = (root / file, Path(file), root.joinpath(*Path(file).parts[-4:]))
    return next((place for place in places if place.is_file()), places[0])


def captioned_pairs(path: Path, rows: list[Title]) -> list[Pair]:
    """The pairs of rows that name degraded photos in LQ folders. Raises DataError for any other row."""
    partners: dict[Path, dict[Path, Path]] = {}
    pairs: list[Pair] = []
    for row in rows:
        folder = row.file.parent
        if folder.name != "LQ" or row.word is None:
            raise DataError(
                f"{path}: {row.file} is no photo in <word>/LQ with a degradation after its caption",
                hint="rows are all of clean photos, or all of degraded ones with GT beside LQ",
            )
        if folder not in partners:
            partners[folder] = dict(matched(folder.parent))
        clean = partners[folder].get(row.file)
        if clean is None:
            raise DataError(f"{path}: {row.file} is no photo of a known kind")
        pairs.append(Pair(degraded=row.file, clean=clean, word=row.word, caption=row.caption))
    return pairs
