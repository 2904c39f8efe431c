"""Camera RAW photos, developed by rawpy (extra [raw]) with the camera's own white balance."""

import io

import numpy as np
import rawpy
from jaxtyping import UInt16

from daclip.errors import PhotoError
from daclip.image import metadata, vips
from daclip.image.limits import Found, Limits, check_size
from daclip.image.photo import Photo

_SRGB_GAMMA = (2.4, 12.92)


def read(found: Found, limits: Limits) -> Photo:
    """The photo in a RAW file as 16-bit sRGB, upright; EXIF is taken from the preview inside."""
    data = found.source if isinstance(found.source, bytes) else found.source.read_bytes()
    with _open(found, data) as raw:
        sizes = raw.sizes
        turned = sizes.flip in (5, 6)
        width, height = (sizes.height, sizes.width) if turned else (sizes.width, sizes.height)
        check_size(found, width, height, limits)
        fields = _preview_fields(raw)

    def decode() -> UInt16[np.ndarray, "h w 3"]:
        with _open(found, data) as raw:
            try:
                return raw.postprocess(
                    use_camera_wb=True, output_bps=16, output_color=rawpy.ColorSpace.sRGB, gamma=_SRGB_GAMMA
                )
            except rawpy.LibRawError as error:
                raise _damaged(found, error) from error

    return Photo(
        path=found.path,
        format="raw",
        width=width,
        height=height,
        bits=16,
        is_grey=False,
        has_alpha=False,
        metadata=fields,
        sample_bits=16,
        decode=decode,
    )


def _open(found: Found, data: bytes) -> rawpy.RawPy:
    try:
        return rawpy.imread(io.BytesIO(data))
    except (rawpy.LibRawError, OSError) as error:
        raise _damaged(found, error) from error


def _preview_fields(raw: rawpy.RawPy) -> metadata.Fields:
    try:
        preview = raw.extract_thumb()
        if preview.format != rawpy.ThumbFormat.JPEG or not isinstance(preview.data, bytes):
            return {}
        return metadata.fields_of(vips.Image.new_from_buffer(preview.data, ""))
    except (rawpy.LibRawError, vips.Error):
        return {}


def _damaged(found: Found, error: Exception) -> PhotoError:
    if isinstance(error, rawpy.LibRawFileUnsupportedError):
        return found.error(
            "unsupported", "this camera's RAW is not supported", hint="develop it to TIFF first"
        )
    return found.error("unreadable", "the RAW data are damaged", hint="copy it again")
