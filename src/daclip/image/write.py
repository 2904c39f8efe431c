"""Writing photos: everything that came with them goes back, and no half-written file is ever seen."""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Num, UInt

from daclip.errors import PhotoError, UsageError
from daclip.image import metadata, vips
from daclip.image.colour import quantise
from daclip.image.photo import Photo, finish

Format = Literal["jpeg", "png", "tiff", "webp", "avif"]

DEFAULT_QUALITY = 92

TEMPORARY_FILES = ".daclip-*.tmp"
"""Names of files that are being written; a killed process leaves one behind."""

WRITABLE_SUFFIXES: dict[str, Format] = {
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".jpe": "jpeg",
    ".jfif": "jpeg",
    ".png": "png",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".webp": "webp",
    ".avif": "avif",
}
_SUFFIX: dict[Format, str] = {"jpeg": ".jpg", "png": ".png", "tiff": ".tif", "webp": ".webp", "avif": ".avif"}
_NO_DPI = (25, 72)
"""Dots per inch that libvips makes up for photos that do not say."""
_XMP_BYTES_OF_JPEG = 65_502
"""What one segment holds beside its own head."""
_BITS: dict[Format, tuple[int, ...]] = {
    "jpeg": (8,),
    "png": (8, 16),
    "tiff": (8, 16, 32),
    "webp": (8,),
    "avif": (8, 16),
}


def output_format(photo: Photo) -> Format:
    """The format of a photo when nobody names one: its own, or what stands in for one that we only read.

    RAW becomes 16-bit TIFF; HEIC, GIF, arrays and Pillow images become PNG with alpha or above 8 bits, else
    JPEG.
    """
    if photo.format in _SUFFIX:
        return photo.format
    if photo.format == "raw":
        return "tiff"
    return "png" if photo.has_alpha or photo.bits > 8 else "jpeg"


def output_path(photo: Photo, path: Path, *, format: Format | None = None) -> Path:
    """Where `write` puts the photo: the path, with another suffix where that is needed."""
    named = WRITABLE_SUFFIXES.get(path.suffix.lower())
    if named is not None and format in (None, named):
        return path
    return path.with_suffix(_SUFFIX[format or output_format(photo)])


def possible_paths(path: Path, *, format: Format | None = None) -> list[Path]:
    """Where `write` may put a photo of which only the name is known: one place, or three for a conversion."""
    named = WRITABLE_SUFFIXES.get(path.suffix.lower())
    if named is not None and format in (None, named):
        return [path]
    kinds: tuple[Format, ...] = ("jpeg", "png", "tiff") if format is None else (format,)
    return [path.with_suffix(_SUFFIX[kind]) for kind in kinds]


def write(
    photo: Photo,
    pixels: UInt[np.ndarray, "h w 3"],
    path: str | Path,
    *,
    format: Format | None = None,
    quality: int | None = None,
    strip_metadata: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write restored pixels as the photo they belong to; the path written comes back (see `output_path`).

    Colours go back to the photo's own profile, depth and bands; alpha, EXIF, XMP, IPTC, resolution are kept.
    What a format cannot hold is said in `photo.warnings`.

    Args:
        photo: what the pixels are a restoration of.
        pixels: sRGB, in `photo.dtype`.
        path: its suffix picks the format unless `format` is given.
        format: picks the format and the suffix.
        quality: 1..100 of JPEG, WebP and AVIF; by default 92, or a JPEG's own where that is higher.
        strip_metadata: drop all but the colour profile.
        overwrite: replace a file that is there; the new one takes permissions and time of the input.

    Raises PhotoError `exists`, `no-space` or `unreadable` (the folder refuses); nothing is left behind.
    """
    target = output_path(photo, Path(path), format=format)
    chosen = WRITABLE_SUFFIXES[target.suffix.lower()]
    if target.suffix.lower() != Path(path).suffix.lower() and format is None:
        photo.warnings.append(
            f"{Path(path).suffix or photo.format.upper()} cannot be written; written as {target.name}"
        )
    with new_file(target, overwrite=overwrite, like=photo.path) as descriptor:
        image, options = _prepared(photo, pixels, chosen, quality=quality, strip_metadata=strip_metadata)
        image.write_to_target(vips.Target.new_to_descriptor(descriptor), _SUFFIX[chosen], **options)
    return target


def to_bytes(
    photo: Photo,
    pixels: UInt[np.ndarray, "h w 3"],
    *,
    format: Format | None = None,
    quality: int | None = None,
    strip_metadata: bool = False,
) -> bytes:
    """The file that `write` would write."""
    chosen = format or output_format(photo)
    image, options = _prepared(photo, pixels, chosen, quality=quality, strip_metadata=strip_metadata)
    return image.write_to_buffer(_SUFFIX[chosen], **options)


def with_notes(photo: Photo, notes: Mapping[str, str]) -> Photo:
    """The photo with what was done to it in its XMP, under the prefix `daclip`; older notes are replaced.

    XMP that cannot be parsed, or would grow beyond what a JPEG holds, stays as it is.
    """
    before = photo.metadata.get("xmp-data")
    xmp = metadata.xmp_with_notes(before if isinstance(before, bytes) else None, notes)
    if xmp is None or len(xmp) > _XMP_BYTES_OF_JPEG:
        return photo
    # the pixels are decoded once, by the photo that came
    return replace(photo, metadata={**photo.metadata, "xmp-data": xmp}, decode=lambda: photo.own)


def copy(source: Path, path: Path, *, overwrite: bool = False) -> Path:
    """Copy a file byte for byte, with the care of `write`: for photos that are left alone."""
    with new_file(path, overwrite=overwrite, like=source) as descriptor, source.open("rb") as file:
        shutil.copyfileobj(file, os.fdopen(descriptor, "wb", closefd=False))
    return path


@contextlib.contextmanager
def new_file(path: Path, *, overwrite: bool, like: Path | None = None) -> Generator[int]:
    """A descriptor to write a file through, which appears under its name complete, or not at all.

    A hidden file in the same folder is written, synced, then renamed. With `overwrite`, permissions and
    modification time of `like` are taken over. Raises PhotoError `exists`, `no-space` or `unreadable`.
    """
    if not overwrite and os.path.lexists(path):
        raise _exists(path)
    path = path.resolve() if overwrite else path
    temporary = path.parent / TEMPORARY_FILES.replace("*", secrets.token_hex(8))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(
            temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666
        )
        try:
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if overwrite and like is not None and like.exists():
            shutil.copystat(like, temporary)
        _put_in_place(temporary, path, overwrite=overwrite)
    except (OSError, vips.Error) as error:
        raise _write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _put_in_place(temporary: Path, path: Path, *, overwrite: bool) -> None:
    if overwrite:
        os.replace(temporary, path)
    else:
        try:
            # a link fails where a rename would silently replace a file that came in the meantime
            os.link(temporary, path)
        except FileExistsError as error:
            raise _exists(path) from error
        except OSError:
            # no hard links on this file system
            os.rename(temporary, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # Windows cannot open folders; the rename itself is safe there
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exists(path: Path) -> PhotoError:
    return PhotoError(
        "exists", path, "already there", hint="use --overwrite, --skip-existing or another output"
    )


def _write_error(path: Path, error: OSError | vips.Error) -> PhotoError:
    text = str(error)
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(
        os.strerror(code) in text for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    ):
        with contextlib.suppress(OSError):
            text = f" ({shutil.disk_usage(path.parent).free / 1e6:,.0f} MB free)"
        return PhotoError(
            "no-space",
            path,
            f"no space left{text}; nothing was written",
            hint="make room, or write elsewhere",
        )
    reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(text.split())
    return PhotoError("unreadable", path, f"cannot be written ({reason.lower()})")


@dataclass(frozen=True, kw_only=True)
class _Saving:
    """What a format's saver needs to know."""

    quality: int
    bits: int
    sample_bits: int
    lossless: bool
    raw_bytes: int


def _prepared(
    photo: Photo,
    pixels: UInt[np.ndarray, "h w 3"],
    format: Format,
    *,
    quality: int | None,
    strip_metadata: bool,
) -> tuple[vips.Image, dict[str, object]]:
    """The finished image with its metadata, and the options of the saver."""
    if quality is not None and not 1 <= quality <= 100:
        raise UsageError(f"quality {quality} is not between 1 and 100")
    array = _fitted(photo, finish(photo, pixels), format)
    image = vips.from_array(array)
    if photo.has_alpha and format == "jpeg":
        photo.warnings.append("JPEG holds no transparency; it was filled with white")
        image = image.flatten(background=[255.0])
    fields = dict(photo.metadata)
    if format == "tiff" and (xmp := metadata.xmp_with_exif(fields)):
        fields["xmp-data"] = xmp
    if strip_metadata:
        fields = {}
    if photo.icc is not None:
        fields["icc-profile-data"] = photo.icc
    saving = _Saving(
        quality=quality or max(DEFAULT_QUALITY, photo.quality or 0),
        bits=array.dtype.itemsize * 8,
        sample_bits=photo.sample_bits,
        lossless=photo.lossless and quality is None,
        raw_bytes=array.nbytes,
    )
    keep = _kept_kinds(fields)
    if format == "jpeg" and round(25.4 * photo.pixels_per_mm[0]) not in _NO_DPI and not strip_metadata:
        # libvips writes the resolution of a JPEG only into EXIF
        keep |= vips.Keep.EXIF
    image = metadata.put(image, fields, pixels_per_mm=photo.pixels_per_mm)
    return image, SAVERS[format](saving) | {"keep": keep}


def _kept_kinds(fields: metadata.Fields) -> int:
    """Libvips' flags: only kinds the photo has, so that no EXIF is made up for photos that came without."""
    keep = vips.Keep.ICC
    if "exif-data" in fields:
        keep |= vips.Keep.EXIF
    if "xmp-data" in fields:
        keep |= vips.Keep.XMP
    if "iptc-data" in fields:
        keep |= vips.Keep.IPTC
    if any(name.startswith("png-comment-") for name in fields):
        keep |= vips.Keep.OTHER
    return keep


def _fitted(photo: Photo, own: Num[np.ndarray, "h w c"], format: Format) -> Num[np.ndarray, "h w c"]:
    """The pixels in the deepest depth that the format holds."""
    bits = own.dtype.itemsize * 8
    if own.dtype.kind == "f" and own.dtype != np.float32:
        own = own.astype(np.float32)
        bits = 32
    fitting = max(b for b in _BITS[format] if b <= bits)
    if fitting == bits:
        return own
    photo.warnings.append(f"{format.upper()} holds {fitting} bits; the {bits} of this photo were rounded")
    return _requantised(own, np.dtype(f"uint{fitting}"))


def _requantised(own: Num[np.ndarray, "h w c"], dtype: np.dtype[np.generic]) -> UInt[np.ndarray, "h w c"]:
    result = np.empty(own.shape, dtype)
    white = 1.0 if own.dtype.kind == "f" else np.iinfo(own.dtype).max
    for row in range(0, own.shape[0], 64):
        unit = np.divide(own[row : row + 64], white, dtype=np.float32)
        result[row : row + 64] = quantise(unit, dtype)
    return result


def _jpeg(saving: _Saving) -> dict[str, object]:
    # better codes need a second pass over coefficients of the whole photo: 1.1 GB for 100 megapixels
    return {"Q": saving.quality, "optimize_coding": saving.raw_bytes < 64_000_000}


def _png(saving: _Saving) -> dict[str, object]:
    return {"compression": 6}


def _tiff(saving: _Saving) -> dict[str, object]:
    # classic TIFF ends at 4 GiB; LZW can grow what it cannot shrink
    big = saving.raw_bytes > 2_500_000_000
    return {"compression": "lzw", "predictor": "horizontal" if saving.bits < 32 else "float", "bigtiff": big}


def _webp(saving: _Saving) -> dict[str, object]:
    return {"lossless": True} if saving.lossless else {"Q": saving.quality}


def _avif(saving: _Saving) -> dict[str, object]:
    bits = 8 if saving.bits == 8 else min(12, max(10, saving.sample_bits))
    return {"Q": saving.quality, "bitdepth": bits, "effort": 4}


SAVERS = {"jpeg": _jpeg, "png": _png, "tiff": _tiff, "webp": _webp, "avif": _avif}
