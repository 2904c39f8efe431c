"""libvips as this package uses it: decoders for untrusted files only, nothing cached, arrays in and out."""

import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyvips
from jaxtyping import Num, Shaped

# Decoding a stranger's file is the widest door of the package, so it is narrowed before anything can be
# opened: every loader is blocked, then the six that are fuzzed upstream are let in again. This holds for
# the whole process.
pyvips.operation_block_set("VipsForeignLoad", True)
for _decoder in ("Jpeg", "Png", "Tiff", "Webp", "Heif", "Nsgif"):
    pyvips.operation_block_set(f"VipsForeignLoad{_decoder}", False)
# photos are read once: cached operations would only keep their memory
pyvips.cache_set_max(0)

Image = pyvips.Image
Error = pyvips.Error
Source = pyvips.Source
Target = pyvips.Target
Keep = pyvips.enums.ForeignKeep

_GTYPES = {bytes: pyvips.GValue.blob_type, str: pyvips.GValue.refstr_type, int: pyvips.GValue.gint_type}
_FORMATS = {"uint8": "uchar", "uint16": "ushort", "float32": "float"}
_INTERPRETATIONS = {
    ("uint8", False): "srgb",
    ("uint8", True): "b-w",
    ("uint16", False): "rgb16",
    ("uint16", True): "grey16",
    ("float32", False): "scrgb",
    ("float32", True): "b-w",
}


def use_threads(count: int) -> None:
    """Let libvips take so many threads for one picture, in this process."""
    pyvips.concurrency_set(count)  # pyright: ignore[reportAttributeAccessIssue]


def from_array(array: Num[np.ndarray, "h w c"]) -> Image:
    """The array (uint8, uint16 or float32; 1 to 4 bands) as a libvips image; copied if not contiguous."""
    data = np.ascontiguousarray(array)
    height, width, bands = data.shape
    image = Image.new_from_memory(data.data, width, height, bands, _FORMATS[data.dtype.name])
    return image.copy(interpretation=_INTERPRETATIONS[data.dtype.name, bands < 3])


def to_array(image: Image) -> Shaped[np.ndarray, "h w c"]:
    """All pixels of the image, decoded now, in the image's own number type."""
    pixels: np.ndarray[Any, Any] = image.numpy()
    return pixels.reshape(image.height, image.width, image.bands)


def set_field(image: Image, name: str, value: bytes | str | int) -> None:
    """Put one metadata field on the image, in place."""
    image.set_type(_GTYPES[type(value)], name, value)  # pyright: ignore[reportArgumentType]


def blob(image: Image, name: str) -> bytes | None:
    """A metadata field of bytes, None where the image has none."""
    return cast("bytes", image.get(name)) if image.get_typeof(name) else None


def number(image: Image, name: str, default: int) -> int:
    """A metadata field that is a whole number."""
    return cast("int", image.get(name)) if image.get_typeof(name) else default


def source_of(data: Path | bytes) -> Source:
    """A file or the bytes of one, ready to be opened; any name will do, even one that is not UTF-8."""
    if isinstance(data, bytes):
        return Source.new_from_memory(data)
    return Source.new_from_file(os.fsencode(data))  # pyright: ignore[reportArgumentType]
