"""HEIC photos, by pillow-heif (extra [heif])."""

import io
from typing import cast

import numpy as np
import pillow_heif
from jaxtyping import Num

from daclip.errors import PhotoError
from daclip.image import metadata
from daclip.image.limits import Found, Limits, check_metadata, check_size
from daclip.image.photo import Photo, checked_profile


def read(found: Found, limits: Limits) -> Photo:
    """The photo in a HEIC file, its bits kept; upright, because the format turns while it decodes."""
    data = found.source if isinstance(found.source, bytes) else found.source.read_bytes()
    try:
        image = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
    except (ValueError, EOFError, RuntimeError, SyntaxError, OSError) as error:
        raise _damaged(found, error) from error
    width, height = image.size
    check_size(found, width, height, limits)
    info = cast("dict[str, bytes | None]", image.info)
    icc, exif, xmp = info.get("icc_profile"), info.get("exif"), info.get("xmp")
    check_metadata(found, len(icc or b""), len(exif or b"") + len(xmp or b""), limits)
    is_grey = image.mode.startswith("L")
    warnings: list[str] = []
    icc, converts = checked_profile(icc, is_grey=is_grey, warnings=warnings)

    def decode() -> Num[np.ndarray, "h w c"]:
        try:
            pixels = np.asarray(image)
        except (ValueError, EOFError, RuntimeError, SyntaxError, OSError) as error:
            raise _damaged(found, error) from error
        return pixels.reshape(height, width, -1)

    return Photo(
        path=found.path,
        format="heic",
        width=width,
        height=height,
        bits=16 if ";16" in image.mode else 8,
        is_grey=is_grey,
        has_alpha="A" in image.mode,
        icc=icc,
        converts=converts,
        metadata=metadata.fields_of_exif(exif, xmp),
        sample_bits=cast("int", image.info.get("bit_depth", 8)),
        warnings=warnings,
        decode=decode,
    )


def _damaged(found: Found, error: Exception) -> PhotoError:
    if isinstance(error, EOFError) or "end of file" in str(error).lower():
        return found.error("truncated", "picture ends early", hint="copy it again")
    return found.error("unreadable", "the HEIC data are damaged", hint="copy or save it again")
