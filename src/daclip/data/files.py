"""Photos where they lie: files, members of shards, rows of tables; decoded once, kept while memory allows."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeVar, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from daclip import image
from daclip.errors import DataError, PhotoError

Pixels8 = UInt8[np.ndarray, "h w 3"]
Split = Literal["train", "val"]
T = TypeVar("T")

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".ppm"})

_OPENCV_SUFFIXES = frozenset({".bmp", ".ppm"})
"""Kinds that old data sets come in and that `daclip.image` does not decode."""


@runtime_checkable
class Stored(Protocol):
    """A photo that can be read: a Path, or anything else with a file name and bytes."""

    @property
    def name(self) -> str:
        """The file name, with its suffix."""
        ...

    def read_bytes(self) -> bytes:
        """The bytes of the file."""
        ...


def list_photos(root: Path) -> list[Path]:
    """All photos under a folder, by suffix, sorted by relative path; hidden ones left out."""
    if not root.is_dir():
        raise DataError(f"{root}: not a folder", hint="name a folder of photos")
    found = [path for path in root.rglob("*") if is_photo_name(path.name)]
    if not found:
        raise DataError(f"{root}: no photos in it", hint=f"known kinds: {' '.join(sorted(PHOTO_SUFFIXES))}")
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def is_photo_name(name: str) -> bool:
    """Whether a file of that name is taken for a photo."""
    return Path(name).suffix.lower() in PHOTO_SUFFIXES and not name.startswith(".")


def is_held_out(name: str, *, one_in: int = 20) -> bool:
    """Whether a photo of that file name is kept for validation: about one in `one_in`, by the name's hash.

    Adding or removing photos never moves another one to the other side.
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % one_in == 0


def split(photos: Sequence[Path], *, held_out: int = 20) -> tuple[list[Path], list[Path]]:
    """Photos to train on and photos held out, see `is_held_out`."""
    val = [path for path in photos if is_held_out(path.name, one_in=held_out)]
    return [path for path in photos if not is_held_out(path.name, one_in=held_out)], val


def side(items: Sequence[T], wanted: Split, *, name: Callable[[T], str], source: object) -> list[T]:
    """The items of one side of the split; where the hash holds none out, those of the first name are.

    Raises DataError when one name is all there is: nothing would be left for the other side.
    """
    names = sorted({name(item) for item in items})
    if len(names) < 2:
        raise DataError(f"{source}: a single photo", hint="training needs one more to validate on")
    val = {each for each in names if is_held_out(each)}
    val = val if 0 < len(val) < len(names) else {names[0]}
    return [item for item in items if (name(item) in val) == (wanted == "val")]


def read_pixels(source: Stored) -> Pixels8:
    """All pixels of a photo as 8-bit sRGB. Raises PhotoError with the photo's name."""
    if Path(source.name).suffix.lower() in _OPENCV_SUFFIXES:
        return _read_opencv(source)
    if isinstance(source, Path):
        photo = image.read(source)
    else:
        try:
            photo = image.read(_content(source))
            photo.own  # noqa: B018  decoded here, where an error gets the name
        except PhotoError as error:
            raise PhotoError(error.kind, str(source), error.message, hint=error.hint) from error
    return eight_bit(photo.crop(0, 0, photo.height, photo.width))


def size_in_header(source: Stored) -> tuple[int, int] | None:
    """Width and height of a photo in a file; None where only reading all of it would tell.

    Raises PhotoError with the photo's name for a file that is no photo.
    """
    if not isinstance(source, Path) or source.suffix.lower() in _OPENCV_SUFFIXES:
        return None
    photo = image.read(source)
    return photo.width, photo.height


def _content(source: Stored) -> bytes:
    try:
        return source.read_bytes()
    except OSError as error:
        raise PhotoError("unreadable", str(source), f"cannot be read ({error.strerror})") from error


def _read_opencv(source: Stored) -> Pixels8:
    coded = np.frombuffer(_content(source), np.uint8)
    decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR) if coded.size else None
    if decoded is None:
        raise PhotoError("not-an-image", str(source), "not a picture, or damaged")
    return np.ascontiguousarray(np.asarray(decoded, np.uint8)[..., ::-1])


def eight_bit(pixels: Float32[np.ndarray, "h w 3"]) -> Pixels8:
    """Pixels in [0, 1] rounded to 8 bits."""
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


class PhotoCache:
    """Decoded photos up to a number of bytes; those used longest ago go first.

    A copy for another process starts empty.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._kept: OrderedDict[Stored, Pixels8] = OrderedDict()

    def __reduce__(self) -> tuple[type["PhotoCache"], tuple[int]]:
        return PhotoCache, (self.limit_bytes,)

    def read(self, source: Stored) -> Pixels8:
        """The pixels of the photo, decoded unless they are still here."""
        if source in self._kept:
            self._kept.move_to_end(source)
            return self._kept[source]
        pixels = read_pixels(source)
        if pixels.nbytes <= self.limit_bytes:
            self._kept[source] = pixels
            self.used_bytes += pixels.nbytes
        while self.used_bytes > self.limit_bytes:
            self.used_bytes -= self._kept.popitem(last=False)[1].nbytes
        return pixels
