"""Resizing for the encoder as the published system does it: Pillow's bicubic, bit for bit (PAPER 1.1)."""

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from daclip.image import colour
from daclip.image.photo import Photo

_FRACTION_BITS = 22
"""Pillow keeps weights as whole numbers of 1 / 2^22, and rounds to 8 bits after each of its two passes."""

_SUPPORT = 2.0

_STRIP_PIXELS = 1_000_000


def window(
    photo: Photo, height: int, width: int, *, top: int, left: int, rows: int, columns: int
) -> Float32[np.ndarray, "{rows} {columns} 3"]:
    """A part of the photo resized to height x width, as sRGB in [0, 1]; only what it shows is computed.

    Equal to `PIL.Image.resize((width, height), BICUBIC)` of the 8-bit photo, cropped. A profile is applied to
    the result, which is small, and not to the photo.
    """
    first_row, down = _weights(photo.height, height, top, rows)
    first_column, across = _weights(photo.width, width, left, columns)
    strip = max(1, _STRIP_PIXELS // across.shape[0])
    narrow = np.empty((down.shape[0], columns, 3), np.uint8)
    for start in range(0, down.shape[0], strip):
        count = min(strip, down.shape[0] - start)
        part = photo.crop_8bit(first_row + start, first_column, count, across.shape[0])
        narrow[start : start + count] = _across(part, across)
    shown = _across(narrow.swapaxes(0, 1), down).swapaxes(0, 1)
    return colour.to_srgb(shown, photo.icc if photo.converts else None)


def _across(
    pixels: UInt8[np.ndarray, "h w 3"], weights: Float64[np.ndarray, "w n"]
) -> UInt8[np.ndarray, "h n 3"]:
    """Weighted sums along the width, in blocks of outputs that share most of their inputs.

    Products are below 2^30 and their sums exact in float64, whatever the order of addition.
    """
    height, width, _ = pixels.shape
    columns = pixels.swapaxes(0, 1).reshape(width, -1).astype(np.float64)
    outputs = weights.shape[1]
    result = np.empty((outputs, height * 3), np.uint8)
    block = 16
    for start in range(0, outputs, block):
        part = weights[:, start : start + block]
        used = np.flatnonzero(part.any(axis=1))
        low, high = used[0], used[-1] + 1
        sums = part[low:high].T @ columns[low:high]
        rounded = np.floor((sums + 2 ** (_FRACTION_BITS - 1)) / 2**_FRACTION_BITS)
        result[start : start + block] = np.clip(rounded, 0, 255)
    return result.reshape(outputs, height, 3).swapaxes(0, 1)


def _weights(length: int, new_length: int, start: int, count: int) -> tuple[int, Float64[np.ndarray, "w n"]]:
    """Pillow's weights for `count` outputs from `start` on: first input used, a row for each input."""
    scale = length / new_length
    widening = max(scale, 1.0)
    spans: list[tuple[int, Float64[np.ndarray, ...]]] = []
    for output in range(start, start + count):
        centre = (output + 0.5) * scale
        low = max(int(centre - _SUPPORT * widening + 0.5), 0)
        high = min(int(centre + _SUPPORT * widening + 0.5), length)
        values = _bicubic((np.arange(low, high) - centre + 0.5) * (1.0 / widening))
        # summed one after the other, as Pillow does
        values = values / np.add.accumulate(values)[-1]
        spans.append((low, np.trunc(values * 2**_FRACTION_BITS + np.copysign(0.5, values))))
    first = min(low for low, _ in spans)
    weights = np.zeros((max(low + len(values) for low, values in spans) - first, count))
    for column, (low, values) in enumerate(spans):
        weights[low - first : low - first + len(values), column] = values
    return first, weights


def _bicubic(x: Float64[np.ndarray, "w"]) -> Float64[np.ndarray, "w"]:
    """Keys' cubic with a = -0.5, in the order of operations that Pillow has."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def shortest_side(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width when the shortest side becomes `side`; the other is cut to a whole number."""
    if width <= height:
        return int(side * height / width), side
    return side, int(side * width / height)


def centre_offset(length: int, side: int) -> int:
    """Where a centred crop starts; Python's rounding to even, as published."""
    return round((length - side) / 2.0)
