"""Reading photos from untrusted files: header and limits first, pixels only when asked for."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Num

from daclip.errors import PhotoError, missing_extra
from daclip.image import exif, metadata, sniff, vips
from daclip.image.limits import DEFAULT_LIMITS, MIB, Found, Limits, check_metadata, check_size
from daclip.image.photo import Bits, Photo, checked_profile


def read(source: str | Path | bytes, *, limits: Limits = DEFAULT_LIMITS) -> Photo:
    """The photo in a file, or in the bytes of one.

    Only the header is read here; `photo.own` decodes. Both raise PhotoError, and nothing else, whatever the
    bytes are: `missing unreadable empty truncated not-an-image unsupported too-large`.
    """
    found = _find(source if isinstance(source, bytes) else Path(source), limits)
    if limits.formats is not None and found.kind not in limits.formats:
        accepted = ", ".join(name.upper() for name in limits.formats)
        raise found.error(
            "unsupported", f"{found.kind.upper()} is not accepted here", hint=f"send {accepted}"
        )
    if transfer := sniff.high_dynamic_range(found.head):
        raise found.error(
            "unsupported",
            f"{transfer} (high dynamic range) coding is not supported",
            hint="export it as SDR first",
        )
    photo = READERS[found.kind](found, limits)
    promised = sniff.READABLE_SUFFIXES.get(photo.path.suffix.lower()) if photo.path else None
    if promised is not None and promised != found.kind:
        said, read_as = promised.upper(), found.kind.upper()
        photo.warnings.insert(0, f"content is {read_as}, name says {said}; read as {read_as}")
    return photo


def _find(source: Path | bytes, limits: Limits) -> Found:
    """Size and first bytes of the source, refused where it cannot be a picture within the limits."""
    path = None if isinstance(source, bytes) else source
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            head = file.read(sniff.HEAD_BYTES)
            size = file.seek(0, io.SEEK_END)
    except FileNotFoundError as error:
        raise PhotoError("missing", path, "no such file") from error
    except IsADirectoryError as error:
        raise PhotoError("unreadable", path, "is a folder that cannot be listed, or not a photo") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise PhotoError("unreadable", path, f"cannot be read ({reason.lower()})") from error
    if size == 0:
        raise PhotoError("empty", path, "file is empty (0 bytes)")
    if size > limits.max_bytes:
        raise PhotoError(
            "too-large", path, f"{size / MIB:,.0f} MiB is above the limit of {limits.max_bytes / MIB:,g}"
        )
    kind = sniff.kind_of(head, path)
    if kind is None:
        looks_like = sniff.description_of(head)
        if looks_like in ("", "text", "a web page", "ZIP", "PDF"):
            raise PhotoError(
                "not-an-image", path, "not a picture" + (f" (looks like {looks_like})" if looks_like else "")
            )
        raise PhotoError(
            "unsupported", path, f"{looks_like} is not supported", hint="save it as PNG, TIFF or JPEG"
        )
    return Found(source=source, path=path, kind=kind, head=head, size_bytes=size)


def _read_vips(found: Found, limits: Limits) -> Photo:
    """A photo that libvips decodes."""
    image = _open(found)
    check_size(found, image.width, image.height, limits)
    _check_samples(found, image)
    icc = vips.blob(image, "icc-profile-data")
    check_metadata(found, len(icc or b""), metadata.size_bytes(image), limits)
    warnings: list[str] = []
    if (pages := vips.number(image, "n-pages", 1)) > 1:
        warnings.append(f"holds {pages} pictures; only the first is read")
    has_alpha = _has_alpha(image)
    is_grey = image.bands - has_alpha == 1
    if image.interpretation == "cmyk":
        warnings.append("CMYK was converted to sRGB, and is written as sRGB")
        icc = None
    icc, converts = checked_profile(icc, is_grey=is_grey, warnings=warnings)
    fields = metadata.fields_of(image)
    if found.kind == "tiff":
        fields |= metadata.fields_of_exif(exif.of_tiff(found.source), None)
    orientation = _orientation(image)
    turned = orientation >= 5
    bits = _BITS[str(image.format)]
    return Photo(
        path=found.path,
        format=found.kind,
        width=image.height if turned else image.width,
        height=image.width if turned else image.height,
        bits=bits,
        is_grey=is_grey,
        has_alpha=has_alpha,
        icc=icc,
        converts=converts,
        metadata=fields,
        pixels_per_mm=(image.xres, image.yres),
        quality=metadata.jpeg_quality(found.source) if found.kind == "jpeg" else None,
        lossless=found.kind in ("png", "tiff", "gif") or (found.kind == "webp" and b"VP8L" in found.head),
        sample_bits=vips.number(image, "bits-per-sample", bits),
        warnings=warnings,
        decode=partial(
            _decode, found, orientation, allow_truncated=limits.allow_truncated, warnings=warnings
        ),
    )


def _open(found: Found, *, fail_on: str = "truncated") -> vips.Image:
    """The header of the picture; pixels are decoded in order, once."""
    try:
        source = vips.source_of(found.source)
        return vips.Image.new_from_source(source, "", access="sequential", fail_on=fail_on)
    except vips.Error as error:
        raise _decoder_error(found, error) from error


def _decode(
    found: Found, orientation: int, *, allow_truncated: bool, warnings: list[str]
) -> Num[np.ndarray, "h w c"]:
    """All pixels, upright, in their own depth; CMYK and CIELAB become sRGB."""
    image = _open(found)
    try:
        pixels = vips.to_array(_as_grey_or_rgb(image))
    except vips.Error as error:
        failure = _decoder_error(found, error)
        if not (allow_truncated and failure.kind == "truncated"):
            raise failure from error
        warnings.append("picture ends early; what is missing is grey or black")
        pixels = vips.to_array(_as_grey_or_rgb(_open(found, fail_on="none")))
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all():
            warnings.append("values that are not finite were set to 0")
            pixels = np.nan_to_num(pixels, nan=0.0, posinf=0.0, neginf=0.0)
        if pixels.max() > 1 or pixels.min() < 0:
            warnings.append("float values outside 0..1 are seen by the network as 0 and 1")
    return _UPRIGHT[orientation](pixels)


def _as_grey_or_rgb(image: vips.Image) -> vips.Image:
    if image.interpretation == "cmyk":
        # libvips brings a general CMYK profile for files without one
        lab = image.icc_import(embedded=True, input_profile="cmyk", intent="relative")
        return lab.icc_export(output_profile="srgb", depth=8 if image.format == "uchar" else 16)
    if image.interpretation in _LAB:
        return image.colourspace("rgb16")
    return image


_BITS: dict[str, Bits] = {"uchar": 8, "ushort": 16, "float": 32}

_LAB = ("lab", "labs", "labq", "xyz", "yxy", "lch", "hsv")

_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],
    7: lambda pixels: pixels.swapaxes(0, 1)[::-1, ::-1],
    8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}
"""How pixels of each EXIF orientation become upright: views, so that turning costs no memory."""


def _orientation(image: vips.Image) -> int:
    value = vips.number(image, "orientation", 1)
    return value if value in _UPRIGHT else 1


def _has_alpha(image: vips.Image) -> bool:
    return image.bands in (2, 5) or (image.bands == 4 and image.interpretation != "cmyk")


def _check_samples(found: Found, image: vips.Image) -> None:
    """Refuse what has no meaning as a photo: further bands, whole numbers of 32 bits, signed numbers."""
    if image.bands > (5 if image.interpretation == "cmyk" else 4):
        raise found.error("unsupported", f"{image.bands} bands are not a photo", hint="save it as RGB")
    if image.format not in _BITS:
        raise found.error(
            "unsupported",
            f"{image.format} samples are not supported",
            hint="save it with 8 or 16 bits or as float",
        )


def _decoder_error(found: Found, error: vips.Error) -> PhotoError:
    """What a failure of libvips means for the user."""
    text = " ".join(str(error).lower().split())
    if "compression format has not been built in" in text:
        return found.error(
            "unsupported", f"this kind of {found.kind.upper()} cannot be decoded here", hint="save it as PNG"
        )
    if "too large" in text or ("exceeds" in text and "limit" in text):
        return found.error("too-large", "the decoder refuses a picture of this size")
    cut = (
        "premature end",
        "bad seek",
        "read error",
        "end of file",
        "end of stream",
        "truncated",
        "not enough data",
    )
    if any(words in text for words in cut) or _ends_early(found):
        return found.error(
            "truncated",
            "picture ends early",
            hint="copy it again, or pass --allow-truncated to restore what is there",
        )
    return found.error(
        "unreadable", f"the {found.kind.upper()} data are damaged", hint="copy or save it again"
    )


def _ends_early(found: Found) -> bool:
    """True when the container promises more bytes than the file has."""
    if found.kind == "webp":
        return int.from_bytes(found.head[4:8], "little") + 8 > found.size_bytes
    if found.kind == "tiff":
        order = "little" if found.head[:2] == b"II" else "big"
        # its directory, which often comes last, and the values it points to take some 200 bytes
        return int.from_bytes(found.head[4:8], order) + 512 > found.size_bytes
    return found.size_bytes < 64


def _read_heic(found: Found, limits: Limits) -> Photo:
    try:
        from daclip.image import heic
    except ModuleNotFoundError as error:
        hint = missing_extra(error, "reading HEIC").hint
        raise found.error("unsupported", "reading HEIC needs an extra", hint=hint) from error
    return heic.read(found, limits)


def _read_raw(found: Found, limits: Limits) -> Photo:
    try:
        from daclip.image import raw
    except ModuleNotFoundError as error:
        hint = missing_extra(error, "reading RAW").hint
        raise found.error("unsupported", "reading camera RAW needs an extra", hint=hint) from error
    return raw.read(found, limits)


READERS: dict[str, Callable[[Found, Limits], Photo]] = {
    "jpeg": _read_vips,
    "png": _read_vips,
    "tiff": _read_vips,
    "webp": _read_vips,
    "avif": _read_vips,
    "gif": _read_vips,
    "heic": _read_heic,
    "raw": _read_raw,
}
