"""EXIF as bytes: taken out of TIFF files, where libvips does not look, and freed of the thumbnail."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

_DESCRIPTION_TAGS = (270, 271, 272, 305, 306, 315, 33432)
_EXIF_POINTER, _GPS_POINTER = 34665, 34853
# maker notes and the pointers inside point to places of the old file
_LEFT_OUT = (37500, 40965)
_BYTES_OF_TYPE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_MOST_ENTRIES, _MOST_VALUE_BYTES = 200, 8192

_Order = Literal["little", "big"]
_Directory = dict[int, tuple[int, int, bytes]]
"""Tag -> type, count, value."""


def of_tiff(source: Path | bytes) -> bytes | None:
    """The descriptive tags, EXIF and GPS of a TIFF file as an EXIF block; None where it has none."""
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        head = file.read(8)
        if head[:4] not in (b"II*\0", b"MM\0*"):
            return None
        order: _Order = "little" if head[:2] == b"II" else "big"
        main = _directory(file, int.from_bytes(head[4:], order), order)
        inner = {
            pointer: _directory(file, int.from_bytes(main[pointer][2], order), order)
            for pointer in (_EXIF_POINTER, _GPS_POINTER)
            if pointer in main
        }
    kept = {tag: main[tag] for tag in _DESCRIPTION_TAGS if tag in main}
    if not kept and not inner:
        return None
    body = b""
    for pointer, directory in inner.items():
        kept[pointer] = (4, 1, (8 + len(body)).to_bytes(4, order))
        body += _packed(directory, 8 + len(body), order)
    return head[:4] + (8 + len(body)).to_bytes(4, order) + body + _packed(kept, 8 + len(body), order)


def without_thumbnail(exif: bytes) -> bytes:
    """The EXIF with its second directory, which holds the thumbnail, taken out of the chain."""
    start = 6 if exif.startswith(b"Exif\0\0") else 0
    order = "little" if exif[start : start + 2] == b"II" else "big"
    first = start + int.from_bytes(exif[start + 4 : start + 8], order)
    entries = int.from_bytes(exif[first : first + 2], order)
    pointer = first + 2 + 12 * entries
    return exif[:pointer] + bytes(len(exif[pointer : pointer + 4])) + exif[pointer + 4 :]


def _directory(file: io.BufferedIOBase, at: int, order: _Order) -> _Directory:
    """The entries of the directory at an offset; those that are damaged or large are left out."""
    file.seek(at)
    count = min(_MOST_ENTRIES, int.from_bytes(file.read(2), order))
    table = file.read(12 * count)
    found: _Directory = {}
    for start in range(0, len(table) - 11, 12):
        entry = table[start : start + 12]
        tag, kind = (int.from_bytes(entry[i : i + 2], order) for i in (0, 2))
        number = int.from_bytes(entry[4:8], order)
        size = number * _BYTES_OF_TYPE.get(kind, _MOST_VALUE_BYTES)
        if tag in _LEFT_OUT or not 0 < size < _MOST_VALUE_BYTES:
            continue
        value = entry[8 : 8 + size]
        if size > 4:
            file.seek(int.from_bytes(entry[8:], order))
            value = file.read(size)
        if len(value) == size:
            found[tag] = (kind, number, value)
    return found


def _packed(directory: Mapping[int, tuple[int, int, bytes]], at: int, order: _Order) -> bytes:
    """A directory to stand at an offset, its values behind it."""
    table, values = len(directory).to_bytes(2, order), b""
    first_value = at + 2 + 12 * len(directory) + 4
    for tag, (kind, count, value) in sorted(directory.items()):
        place = value.ljust(4, b"\0")
        if len(value) > 4:
            place = (first_value + len(values)).to_bytes(4, order)
            values += value + bytes(len(value) % 2)
        table += tag.to_bytes(2, order) + kind.to_bytes(2, order) + count.to_bytes(4, order) + place
    return table + bytes(4) + values
