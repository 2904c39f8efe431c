"""Photo: one picture with everything that came with it; its pixels are decoded once, when first asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float32, Num, Shaped, UInt, UInt8

from daclip.errors import UsageError
from daclip.image import colour

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

Bits = Literal[8, 16, 32]

_STRIP_PIXELS = 2_000_000
"""Whole photos are worked on in strips of about this many pixels, so that no float copy of one exists."""


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A photo as found: what its header says at once, its pixels on demand, upright.

    Args:
        path: where it came from; None for bytes and arrays.
        format: `jpeg png tiff webp avif gif heic raw`, or `array` or `pil`.
        width, height: in pixels, after the orientation tag was applied.
        bits: per sample: 8, 16, or 32 for float (sRGB-coded, 1 is white).
        is_grey, has_alpha: what the bands are.
        icc: the colour profile that goes with the file.
        converts: whether that profile must be applied; never for sRGB, grey, or no profile.
        metadata: EXIF, XMP, IPTC and comments, under libvips' field names.
        pixels_per_mm: resolution for print, across and down.
        quality: of a JPEG, estimated from its tables; None for others.
        lossless: whether the file kept every bit.
        sample_bits: significant bits per sample where the file says so (10 or 12 in AVIF), else `bits`.
        warnings: what the user should hear about; reading and writing append to it.
        decode: makes the array of `own`; called once.
    """

    path: Path | None = None
    format: str
    width: int
    height: int
    bits: Bits
    is_grey: bool
    has_alpha: bool
    icc: bytes | None = field(default=None, repr=False)
    converts: bool = False
    metadata: Mapping[str, bytes | str | int] = field(default_factory=dict[str, Any], repr=False)
    pixels_per_mm: tuple[float, float] = (1.0, 1.0)
    quality: int | None = None
    lossless: bool = False
    sample_bits: int = 8
    warnings: list[str] = field(default_factory=list[str])
    decode: Callable[[], Num[np.ndarray, "h w c"]] = field(repr=False)

    @cached_property
    def own(self) -> Num[np.ndarray, "h w c"]:
        """The pixels in the photo's own depth and colours: grey or RGB bands, then alpha. Decoded once.

        Raises PhotoError when the file turns out to be truncated or damaged.
        """
        return self.decode()

    @property
    def colours(self) -> Num[np.ndarray, "h w c"]:
        """The 1 or 3 colour bands of `own`, without alpha."""
        return self.own[:, :, : 1 if self.is_grey else 3]

    @property
    def alpha(self) -> Num[np.ndarray, "h w"] | None:
        """Opacity in the photo's own depth; None where there is none."""
        return self.own[:, :, -1] if self.has_alpha else None

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Depth in which restored sRGB pixels are kept: uint8 where that loses nothing, otherwise uint16."""
        return np.dtype(np.uint8 if self.bits == 8 and not self.converts else np.uint16)

    def crop(self, top: int, left: int, height: int, width: int) -> Float32[np.ndarray, "{height} {width} 3"]:
        """A part of the photo as sRGB in [0, 1], for a network; grey is replicated, alpha left out."""
        part = self.colours[top : top + height, left : left + width]
        return colour.to_srgb(part, self.icc if self.converts else None)

    def crop_8bit(
        self, top: int, left: int, height: int, width: int
    ) -> UInt8[np.ndarray, "{height} {width} 3"]:
        """A part of the photo in its own colours with 8 bits, rounded; grey is replicated, alpha left out."""
        part = self.colours[top : top + height, left : left + width]
        if part.dtype == np.uint8:
            return np.repeat(part, 3, axis=2) if self.is_grey else part
        return colour.quantise(colour.to_srgb(part, None), np.dtype(np.uint8)).astype(np.uint8)


def finish(photo: Photo, pixels: UInt[np.ndarray, "h w 3"]) -> Num[np.ndarray, "h w c"]:
    """Restored sRGB pixels of `photo.dtype` in the photo's own colours, depth and bands, alpha as it was.

    Pixels that were not changed come back bit for bit, and so do the colours under an alpha of 0.
    Raises UsageError when the pixels do not fit the photo.
    """
    if pixels.shape != (photo.height, photo.width, 3) or pixels.dtype != photo.dtype:
        wanted = f"{photo.dtype} of {photo.height} x {photo.width} x 3"
        raise UsageError(
            f"restored pixels are {pixels.dtype} of {' x '.join(map(str, pixels.shape))}, not {wanted}"
        )
    icc = photo.icc if photo.converts else None
    if icc is None and not photo.has_alpha and not photo.is_grey and photo.own.dtype == photo.dtype:
        return pixels
    result = np.empty(photo.own.shape, photo.own.dtype)
    rows = max(1, _STRIP_PIXELS // photo.width)
    for top in range(0, photo.height, rows):
        strip = slice(top, top + rows)
        colours = colour.from_srgb(pixels[strip], photo.colours[strip], icc)
        if photo.alpha is None:
            result[strip] = colours
        else:
            hidden = photo.alpha[strip, :, None] == 0
            result[strip, :, :-1] = np.where(hidden, photo.colours[strip], colours)
            result[strip, :, -1] = photo.alpha[strip]
    return result


def from_array(array: Shaped[np.ndarray, "*shape"]) -> Photo:
    """A photo from an array h w, h w 1, h w 3 or h w 4 of uint8, uint16 or float (sRGB-coded, in [0, 1]).

    The array is not copied. Raises UsageError for other shapes, number types, or values that are not finite.
    """
    own = array[:, :, None] if array.ndim == 2 else array
    if own.ndim != 3 or own.shape[2] not in (1, 2, 3, 4) or 0 in own.shape:
        raise UsageError(
            f"array of shape {array.shape} is not a photo", hint="give h w, h w 1, h w 3 or h w 4"
        )
    bits = _bits(own.dtype)
    if bits == 32 and not np.isfinite(own).all():
        raise UsageError("array holds values that are not finite", hint="replace NaN and infinity first")
    height, width, bands = own.shape
    return Photo(
        format="array",
        width=width,
        height=height,
        bits=bits,
        is_grey=bands < 3,
        has_alpha=bands in (2, 4),
        sample_bits=bits,
        lossless=True,
        decode=lambda: own,
    )


def to_array(photo: Photo, pixels: UInt[np.ndarray, "h w 3"], *, ndim: int = 3) -> Num[np.ndarray, "*shape"]:
    """Restored pixels as an array like the one the photo came from; ndim 2 for grey without a band axis."""
    own = finish(photo, pixels)
    return own[:, :, 0] if ndim == 2 else own


def from_pil(image: "PilImage") -> Photo:
    """A photo from a Pillow image, its profile honoured; palettes are expanded, other modes become RGB.

    Pixels are taken as they stand: an orientation tag in the image's EXIF is neither applied nor lost.
    """
    mode = image.mode
    if mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif mode == "1":
        image = image.convert("L")
    elif mode not in ("L", "LA", "RGB", "RGBA", "I;16", "F"):
        image = image.convert("RGB")
    photo = from_array(np.asarray(image))
    icc, converts = checked_profile(
        image.info.get("icc_profile"), is_grey=photo.is_grey, warnings=photo.warnings
    )
    return replace(photo, format="pil", icc=icc, converts=converts)


def to_pil(photo: Photo, pixels: UInt[np.ndarray, "h w 3"], *, like: "PilImage | None" = None) -> "PilImage":
    """Restored pixels as a Pillow image; `like` gives its `info` (EXIF, profile, resolution)."""
    from PIL import Image

    own = finish(photo, pixels)
    image = Image.fromarray(own[:, :, 0] if own.shape[2] == 1 else own)
    if like is not None:
        image.info.update(like.info)
        image.info.pop("transparency", None)
    return image


def checked_profile(icc: bytes | None, *, is_grey: bool, warnings: list[str]) -> tuple[bytes | None, bool]:
    """The profile to keep, and whether it must be applied; one that does not fit is dropped, with a warning.

    Profiles for grey are kept and not applied: the network sees the grey values as they stand.
    """
    if not icc:
        return None, False
    if is_grey:
        return (icc, False) if icc[16:20] == b"GRAY" else (None, False)
    try:
        return icc, colour.applies(icc)
    except ValueError as error:
        warnings.append(f"{error}; colours are taken as sRGB")
        return None, False


def _bits(dtype: np.dtype[np.generic]) -> Bits:
    if dtype == np.uint8:
        return 8
    if dtype == np.uint16:
        return 16
    if dtype.kind == "f":
        return 32
    raise UsageError(f"array of {dtype} is not a photo", hint="give uint8, uint16, or float in [0, 1]")
