"""ICC profiles of three primaries and tone curves: Display P3, Adobe RGB, ProPhoto, most monitors.

Applied here in a fifth of the time that littleCMS takes through libvips, and more exactly in dark colours;
profiles made of tables are left to it.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float32, Float64, UInt16

_SRGB_TO_XYZ = np.array(
    [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
)
"""Linear sRGB to the profile connection space, whose white is D50."""


@dataclass(frozen=True, kw_only=True)
class MatrixProfile:
    """A profile as numbers.

    Args:
        decode: linear light of each 16-bit value, a row for each channel.
        encode: 16-bit value of linear light (i / 65535)^2, a row for each channel; finer where it is dark.
        to_srgb: linear light to linear sRGB.
    """

    decode: Float32[np.ndarray, "3 65536"]
    encode: UInt16[np.ndarray, "3 65536"]
    to_srgb: Float64[np.ndarray, "3 3"]


def to_srgb(pixels: UInt16[np.ndarray, "h w 3"], profile: MatrixProfile) -> UInt16[np.ndarray, "h w 3"]:
    """Colours of the profile as sRGB; those outside are clipped."""
    return _through(pixels, profile.decode, profile.to_srgb, _srgb().encode)


def from_srgb(pixels: UInt16[np.ndarray, "h w 3"], profile: MatrixProfile) -> UInt16[np.ndarray, "h w 3"]:
    """SRGB as colours of the profile."""
    return _through(pixels, _srgb().decode, np.linalg.inv(profile.to_srgb), profile.encode)


@lru_cache(maxsize=32)
def matrix_profile(icc: bytes) -> MatrixProfile | None:
    """The profile, or None where it works by tables. Raises ValueError where its tags make no sense."""
    tags = _tags(icc)
    if not {"rXYZ", "gXYZ", "bXYZ", "rTRC", "gTRC", "bTRC"} <= tags.keys() or "A2B0" in tags:
        return None
    primaries = np.stack([_s15(tags[f"{channel}XYZ"][8:20]) for channel in "rgb"], axis=1)
    if abs(np.linalg.det(primaries)) < 1e-6:
        raise ValueError("the colour profile is damaged")
    curves = np.stack([_curve(tags[f"{channel}TRC"]) for channel in "rgb"])
    return _profile(curves, np.linalg.solve(_SRGB_TO_XYZ, primaries))


@lru_cache(maxsize=1)
def _srgb() -> MatrixProfile:
    x = np.linspace(0, 1, 65536)
    curve = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return _profile(np.stack([curve] * 3), np.eye(3))


def _profile(curves: Float64[np.ndarray, "3 65536"], to_srgb: Float64[np.ndarray, "3 3"]) -> MatrixProfile:
    light = np.linspace(0, 1, 65536) ** 2
    values = np.arange(65536.0)
    encode = np.stack([np.interp(light, np.maximum.accumulate(curve), values) for curve in curves])
    return MatrixProfile(
        decode=curves.astype(np.float32), encode=np.round(encode).astype(np.uint16), to_srgb=to_srgb
    )


def _through(
    pixels: UInt16[np.ndarray, "h w 3"],
    decode: Float32[np.ndarray, "3 65536"],
    matrix: Float64[np.ndarray, "3 3"],
    encode: UInt16[np.ndarray, "3 65536"],
) -> UInt16[np.ndarray, "h w 3"]:
    linear = np.stack([decode[channel][pixels[:, :, channel]] for channel in range(3)])
    rows = matrix.astype(np.float32)
    result = np.empty_like(pixels, order="C")
    for channel in range(3):
        light = rows[channel, 0] * linear[0] + rows[channel, 1] * linear[1] + rows[channel, 2] * linear[2]
        np.clip(light, 0, 1, out=light)
        index = np.sqrt(light, out=light) * np.float32(65535) + np.float32(0.5)
        result[:, :, channel] = encode[channel][index.astype(np.uint16)]
    return result


def _tags(icc: bytes) -> dict[str, bytes]:
    """Tags by their four letters; damaged ones are cut where the profile ends."""
    count = min(100, int.from_bytes(icc[128:132], "big"))
    tags: dict[str, bytes] = {}
    for at in range(132, 132 + 12 * count, 12):
        offset, size = (int.from_bytes(icc[at + i : at + i + 4], "big") for i in (4, 8))
        tags[icc[at : at + 4].decode("latin-1")] = icc[offset : offset + size]
    return tags


def _s15(data: bytes) -> Float64[np.ndarray, "n"]:
    """Numbers with 16 bits behind the point."""
    return np.frombuffer(data[: len(data) // 4 * 4], ">i4") / 65536.0


def _curve(tag: bytes) -> Float64[np.ndarray, "65536"]:
    """Linear light of each 16-bit value; ICC.1, curveType and parametricCurveType."""
    x = np.linspace(0, 1, 65536)
    if tag[:4] == b"curv":
        count = int.from_bytes(tag[8:12], "big")
        table = np.frombuffer(tag[12 : 12 + 2 * count], ">u2") / 65535.0
        if count != len(table):
            raise ValueError("the colour profile is damaged")
        if count == 0:
            return x
        # a single number is a gamma, with 8 bits behind the point
        return x ** (table[0] * 65535 / 256) if count == 1 else np.interp(x, np.linspace(0, 1, count), table)
    kind = int.from_bytes(tag[8:10], "big")
    numbers = _s15(tag[12:])
    if tag[:4] != b"para" or kind > 4 or len(numbers) < (needed := (1, 3, 4, 5, 7)[kind]):
        raise ValueError("the colour profile is damaged")
    return np.clip(_parametric(kind, [float(n) for n in numbers[:needed]], x), 0, 1)


def _parametric(kind: int, numbers: list[float], x: Float64[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
    """Functions 0 to 4 of ICC.1 table 68: (a x + b)^g + c above d, a line below."""
    g, a, b = (*numbers, 1.0, 0.0)[:3] if kind == 0 else numbers[:3]
    power = np.maximum(a * x + b, 0) ** g
    if kind == 0:
        return power
    if kind in (1, 2):
        offset = numbers[3] if kind == 2 else 0.0
        return np.where(a * x >= -b, power + offset, offset)
    slope, start = numbers[3], numbers[4]
    above, below = (numbers[5], numbers[6]) if kind == 4 else (0.0, 0.0)
    return np.where(x >= start, power + above, slope * x + below)
