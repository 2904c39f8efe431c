"""Between a photo's own colours (depth, grey or RGB, profile) and the sRGB in [0, 1] that networks see."""

from functools import lru_cache
from typing import cast

import numpy as np
from jaxtyping import Float32, Num, UInt, UInt16

from daclip.image import icc as icc_profiles
from daclip.image import vips

_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
"""Rec. 709 weights: how three restored channels of a grey photo become one again."""

_SRGB_TOLERANCE_16BIT = 2 * 257
"""Profiles that move no colour by more than two levels of 8 bit are sRGB by another maker: not applied."""


@lru_cache(maxsize=32)
def applies(icc: bytes) -> bool:
    """True when the profile is one for RGB and not sRGB, so that colours must be converted for the network.

    Raises ValueError when the profile is not for RGB, or damaged.
    """
    if icc[16:20] != b"RGB ":
        raise ValueError("the colour profile is not one for RGB")
    if icc[36:40] != b"acsp" or int.from_bytes(icc[:4], "big") > len(icc):
        raise ValueError("the colour profile is damaged")
    steps = np.linspace(0, 65535, 9).astype(np.uint16)
    lattice = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
    try:
        moved = _convert(lattice, source=icc, target=None)
    except (vips.Error, np.linalg.LinAlgError) as error:
        raise ValueError("the colour profile is damaged") from error
    return bool(np.abs(moved.astype(np.int32) - lattice).max() > _SRGB_TOLERANCE_16BIT)


def to_srgb(own: Num[np.ndarray, "h w c"], icc: bytes | None) -> Float32[np.ndarray, "h w 3"]:
    """The photo's own colours as sRGB in [0, 1]; one band is replicated, floats are clipped.

    Args:
        own: 1 or 3 bands, uint8, uint16, or float with 1 for white.
        icc: the profile to convert from, None for none.
    """
    if icc is not None:
        return _unit(_convert(_to_16bit(own), source=icc, target=None))
    unit = _unit(own)
    return np.repeat(unit, 3, axis=2) if own.shape[2] == 1 else unit


def from_srgb(
    restored: UInt[np.ndarray, "h w 3"], own: Num[np.ndarray, "h w c"], icc: bytes | None
) -> Num[np.ndarray, "h w c"]:
    """Restored sRGB pixels in the photo's own colours and depth: own + (what the restoration changed).

    The change is converted and added to what was there, rather than the whole converted: a pixel that was
    not changed comes back bit for bit, and colours outside sRGB (wide gamut, float highlights) survive.
    """
    if icc is None and own.dtype == restored.dtype and own.shape[2] == 3:
        return restored
    before = quantise(to_srgb(own, icc), restored.dtype)
    # float32: a change of nothing is exactly 0, and others keep 24 bits
    change = _in_own_colours(restored, icc, own.shape[2]) - _in_own_colours(before, icc, own.shape[2])
    white = _white(own.dtype)
    result = own + change * white
    if own.dtype.kind == "f":
        return result.astype(own.dtype)
    return (np.clip(result, 0, white) + 0.5).astype(own.dtype)


def quantise(unit: Float32[np.ndarray, "*shape"], dtype: np.dtype[np.generic]) -> UInt[np.ndarray, "*shape"]:
    """Values in [0, 1] as whole numbers of the depth, rounded; values outside are clipped."""
    return (np.clip(unit, 0, 1) * np.float32(_white(dtype)) + np.float32(0.5)).astype(dtype)


def _white(dtype: np.dtype[np.generic]) -> int:
    return 1 if dtype.kind == "f" else int(np.iinfo(cast("np.dtype[np.uint8]", dtype)).max)


def _unit(values: Num[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    if values.dtype.kind == "f":
        return np.clip(values, 0, 1).astype(np.float32)
    return np.divide(values, np.float32(_white(values.dtype)), dtype=np.float32)


def _to_16bit(values: Num[np.ndarray, "h w c"]) -> UInt16[np.ndarray, "h w c"]:
    if values.dtype == np.uint8:
        return values.astype(np.uint16) * np.uint16(257)
    return values if values.dtype == np.uint16 else quantise(_unit(values), np.dtype(np.uint16))


def _in_own_colours(
    srgb: UInt[np.ndarray, "h w 3"], icc: bytes | None, bands: int
) -> Float32[np.ndarray, "h w c"]:
    """SRGB pixels as fractions of white in the photo's colours."""
    if bands == 1:
        return _unit(srgb) @ _LUMA[:, None]
    return _unit(srgb if icc is None else _convert(_to_16bit(srgb), source=None, target=icc))


def _convert(
    pixels: UInt16[np.ndarray, "h w 3"], *, source: bytes | None, target: bytes | None
) -> UInt16[np.ndarray, "h w 3"]:
    """Colours of one profile in another; None stands for sRGB, and is one of the two."""
    if source is not None and (matrix := icc_profiles.matrix_profile(source)):
        return icc_profiles.to_srgb(pixels, matrix)
    if target is not None and (matrix := icc_profiles.matrix_profile(target)):
        return icc_profiles.from_srgb(pixels, matrix)
    return _convert_by_tables(pixels, source=source, target=target)


def _convert_by_tables(
    pixels: UInt16[np.ndarray, "h w 3"], *, source: bytes | None, target: bytes | None
) -> UInt16[np.ndarray, "h w 3"]:
    """The same by littleCMS, for any profile.

    By way of CIELAB in float: its direct 16-bit transform interpolates in a coarse table, and moved dark
    colours of Display P3 by up to 15 levels of 8 bit where this way moves them by 1.4.
    """
    image = vips.from_array(pixels)
    if source is None:
        lab = image.icc_import(input_profile="srgb", intent="relative")
    else:
        vips.set_field(image, "icc-profile-data", source)
        lab = image.icc_import(embedded=True, intent="relative")
    if target is None:
        return vips.to_array(lab.icc_export(output_profile="srgb", depth=16, intent="relative"))
    lab = lab.copy()
    vips.set_field(lab, "icc-profile-data", target)
    return vips.to_array(lab.icc_export(depth=16, intent="relative"))
