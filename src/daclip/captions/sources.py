"""Captioners that need no model: a caption file, the tags photos carry, none."""

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import defusedxml.ElementTree
from defusedxml import DefusedXmlException

from daclip import image
from daclip.data import is_photo_name, split_title
from daclip.errors import DataError

Captioner = Callable[[Sequence[Path]], list[str | None]]
"""A caption for each photo, or None for those it has none for."""


def nothing(photos: Sequence[Path]) -> list[str | None]:
    """No captions."""
    return [None for _ in photos]


def from_file(path: Path) -> Captioner:
    """Captions by file name, out of a caption file; of several for one photo the first.

    Reads Flickr8k's forms (`image,caption` and `photo.jpg#0<tab>caption`), tables whose first column names
    the photo and another is called caption, caption1 or title, and the files `daclip caption` writes. A photo
    is found by its name, or by its name without suffix.
    """
    captions: dict[str, str] = {}
    for file, caption in _rows(path):
        name = Path(file.partition("#")[0]).name
        for key in (name, Path(name).stem):
            captions.setdefault(key, caption)
    if not captions:
        raise DataError(f"{path}: no captions in it", hint="one row for each photo: image,caption")

    def captioner(photos: Sequence[Path]) -> list[str | None]:
        return [captions.get(photo.name) or captions.get(photo.stem) for photo in photos]

    return captioner


def _rows(path: Path) -> list[tuple[str, str]]:
    """File and caption of each row that has both."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a caption file ({error})") from error
    has_tabs = bool(lines) and "\t" in lines[0]
    if has_tabs and is_photo_name(lines[0].split("\t")[0].partition("#")[0]):
        # Flickr8k.token.txt: no header, and quotation marks that are part of the captions
        parted = [line.partition("\t") for line in lines]
        return [(file, caption.strip()) for file, _, caption in parted if caption.strip()]
    table = list(csv.reader(lines, delimiter="\t" if has_tabs else ","))
    header = [name.strip().lower() for name in table[0]] if table else []
    column = next((header.index(name) for name in ("caption", "caption1", "title") if name in header), None)
    if column is None:
        raise DataError(
            f"{path}: no column of captions among {', '.join(header) or 'none'}", hint="call it caption"
        )
    rows = [(row[0], row[column].strip()) for row in table[1:] if len(row) > column and row[column].strip()]
    if header[column] == "title":
        return [(file, caption) for file, title in rows if (caption := split_title(title)[0])]
    return rows


def from_tags(photos: Sequence[Path]) -> list[str | None]:
    """The tags of each photo after "a photo of": its keywords (XMP dc:subject), or `photo.txt` beside it."""
    captions: list[str | None] = []
    for photo in photos:
        tags = _keywords(photo) or _sidecar(photo)
        captions.append(f"a photo of {', '.join(tags)}" if tags else None)
    return captions


_KEYWORDS = ".//{http://purl.org/dc/elements/1.1/}subject//{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"


def _keywords(photo: Path) -> list[str]:
    xmp = image.read(photo).metadata.get("xmp-data")
    if not isinstance(xmp, bytes):
        return []
    try:
        tree = defusedxml.ElementTree.fromstring(xmp.strip(b"\0 \n"))
    except (DefusedXmlException, defusedxml.ElementTree.ParseError):
        return []
    return [text for item in tree.iterfind(_KEYWORDS) if (text := (item.text or "").strip())]


def _sidecar(photo: Path) -> list[str]:
    beside = photo.with_suffix(".txt")
    if not beside.is_file():
        return []
    text = beside.read_text(encoding="utf-8", errors="replace")
    return [tag.strip() for tag in re.split(r"[,;\n]", text) if tag.strip()]
