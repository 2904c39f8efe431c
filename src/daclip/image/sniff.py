"""What a file is, from its first bytes: never from its name, except camera RAW, which looks like TIFF."""

import string
from pathlib import Path

READABLE_SUFFIXES = {
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".jpe": "jpeg",
    ".jfif": "jpeg",
    ".png": "png",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".webp": "webp",
    ".avif": "avif",
    ".gif": "gif",
    ".heic": "heic",
    ".heif": "heic",
    ".hif": "heic",
}
"""The kind of picture that a file name promises."""

RAW_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *(
            "3fr",
            "arw",
            "cr2",
            "cr3",
            "crw",
            "dcr",
            "dng",
            "erf",
            "iiq",
            "kdc",
            "mef",
            "mos",
            "mrw",
            "nef",
            "nrw",
        ),
        *("orf", "pef", "raf", "raw", "rw2", "sr2", "srf", "srw", "x3f"),
    )
)
"""Of camera RAW, most of which is TIFF by content."""

_READABLE = {
    b"\xff\xd8\xff": "jpeg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",
    b"MM\0+": "tiff",
    b"GIF8": "gif",
    b"FUJIFILMCCD-RAW": "raw",
    b"IIU\0": "raw",
    b"IIRO": "raw",
    b"IIRS": "raw",
    b"MMOR": "raw",
    b"FOVb": "raw",
    b"\0MRM": "raw",
}
_REFUSED = {
    b"BM": "BMP",
    b"8BPS": "Photoshop",
    b"%PDF": "PDF",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"v/1\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance",
    b"\0\0\1\0": "ICO",
    b"P5": "PGM",
    b"P6": "PPM",
    b"PK\3\4": "ZIP",
}

HEAD_BYTES = 65_536
"""How much of a file is looked at."""


def kind_of(head: bytes, path: Path | None) -> str | None:
    """`jpeg png tiff webp avif gif heic raw` from the first bytes of a file, None for anything else."""
    kind = next((kind for magic, kind in _READABLE.items() if head.startswith(magic)), None)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        kind = "webp"
    elif head[4:8] == b"ftyp":
        kind = _box_kind(head)
    if kind == "tiff" and (_is_raw_by_name(path) or _is_dng_or_cr2(head)):
        return "raw"
    return kind


def description_of(head: bytes) -> str:
    """What a file that is no readable picture looks like, for the message."""
    start = head.lstrip()[:256].lower()
    if b"<svg" in head[:1024].lower():
        return "SVG"
    for magic, name in _REFUSED.items():
        if head.startswith(magic) and (len(magic) > 2 or not _is_text(head)):
            return name
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    return "text" if _is_text(head) else ""


def high_dynamic_range(head: bytes) -> str | None:
    """`PQ` or `HLG` where an AVIF, HEIC or PNG says that its values are coded so; None otherwise."""
    if (at := head.find(b"colrnclx")) >= 0:
        transfer = int.from_bytes(head[at + 10 : at + 12], "big")
    elif (at := head.find(b"cICP", 0, 4096)) >= 0:
        transfer = int.from_bytes(head[at + 5 : at + 6], "big")
    else:
        return None
    return {16: "PQ", 18: "HLG"}.get(transfer)


def _is_raw_by_name(path: Path | None) -> bool:
    return path is not None and path.suffix.lower() in RAW_SUFFIXES


def _is_dng_or_cr2(head: bytes) -> bool:
    """True for TIFF structures that only a RAW developer reads rightly: Canon's mark, or a DNG version."""
    if head[8:10] == b"CR":
        return True
    order = "little" if head[:2] == b"II" else "big"
    start = int.from_bytes(head[4:8], order)
    count = int.from_bytes(head[start : start + 2], order)
    entries = range(start + 2, start + 2 + 12 * count, 12)
    return any(int.from_bytes(head[at : at + 2], order) == 50706 for at in entries)


def _box_kind(head: bytes) -> str | None:
    """Kind of an ISO media file, from its brands."""
    length = int.from_bytes(head[:4], "big")
    brands = {head[at : at + 4] for at in (8, *range(16, min(length, 256), 4))}
    if brands & {b"avif", b"avis"}:
        return "avif"
    if brands & {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}:
        return "heic"
    return "raw" if b"crx " in brands else None


def _is_text(head: bytes) -> bool:
    printable = set(string.printable.encode())
    return all(byte in printable or byte >= 0x80 for byte in head[:512])
