"""What several of the ten share: draws, light, smooth fields and round shapes."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32

Pixels = Float32[np.ndarray, "h w 3"]
Plane = Float32[np.ndarray, "h w"]
Rng = np.random.Generator
Number = int | float  # the type checker of the tests takes no int for a float
Parameters = dict[str, Any]
Degrade = Callable[[np.ndarray, float, Rng], tuple[np.ndarray, Parameters]]


def between(rng: Rng, low: Number, high: Number) -> float:
    """A uniform draw as a plain float."""
    return low + (high - low) * float(rng.random())


def chance(rng: Rng, share: float) -> bool:
    """True in a share of draws."""
    return float(rng.random()) < share


def choice(rng: Rng, shares: dict[str, float]) -> str:
    """One of the keys, drawn by its share (shares sum to 1)."""
    at = float(rng.random())
    for key, share in shares.items():
        at -= share
        if at < 0:
            return key
    return next(reversed(shares))


def magnification(pixels: np.ndarray) -> float:
    """How much larger than 480 rows a photo is; 1 for smaller ones and for cut-outs."""
    return max(1.0, min(pixels.shape[:2]) / 480)


@cache
def _tables() -> tuple[Float32[np.ndarray, "65536"], Float32[np.ndarray, "65536"]]:
    """IEC 61966-2-1 both ways over 16-bit steps: sRGB -> linear, linear -> sRGB."""
    x = np.arange(65536) / 65535
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    stored = np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)
    return linear.astype(np.float32), stored.astype(np.float32)


def _looked_up(
    table: Float32[np.ndarray, "65536"], values: Float32[np.ndarray, "*s"]
) -> Float32[np.ndarray, "*s"]:
    """The table at values clipped to [0, 1]."""
    return np.take(table, (np.clip(values, 0, 1) * 65535 + 0.5).astype(np.uint16))


def to_linear(pixels: Float32[np.ndarray, "*s 3"]) -> Float32[np.ndarray, "*s 3"]:
    """Linear light of sRGB values."""
    return _looked_up(_tables()[0], pixels)


def to_stored(light: Float32[np.ndarray, "*s 3"]) -> Float32[np.ndarray, "*s 3"]:
    """The sRGB values of linear light, clipped to [0, 1]."""
    return _looked_up(_tables()[1], light)


def rounded(pixels: Float32[np.ndarray, "h w c"]) -> Float32[np.ndarray, "h w c"]:
    """The pixels on the 8-bit grid."""
    return (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8).astype(np.float32) / np.float32(255)


def softened(plane: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur; the planes or pixels themselves below a sigma that shows."""
    return plane if sigma < 0.15 else cv2.GaussianBlur(plane, (0, 0), sigma)


def smooth_field(shape: tuple[int, int], cells: Number, rng: Rng) -> Plane:
    """A smooth random field in [0, 1] with about `cells` bumps along the longer side."""
    height, width = shape
    longest = max(height, width)
    grid = rng.random(
        (max(2, round(cells * height / longest)), max(2, round(cells * width / longest))), np.float32
    )
    field = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(field, 0, 1)


def linear_ramp(shape: tuple[int, int], angle: float) -> Plane:
    """A linear slope over the photo from 0 to 1 in the direction of the angle (radians)."""
    height, width = shape
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None] * np.float32(math.sin(angle))
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :] * np.float32(math.cos(angle))
    slope = (x + y) / np.float32(abs(math.sin(angle)) + abs(math.cos(angle))) + np.float32(0.5)
    return np.clip(slope, 0, 1)


def near_white(rng: Rng, spread: float) -> Float32[np.ndarray, "3"]:
    """A light colour between bluish and yellowish, largest channel 1."""
    warm = between(rng, -spread, spread)
    green = between(rng, -spread, spread) / 4
    colour = np.array([1 + warm, 1 + green, 1 - warm], np.float32)
    return colour / colour.max()


def listed(values: np.ndarray) -> list[float]:
    """Numbers for the record, short enough to read."""
    return [round(float(value), 4) for value in values]


def random_blob(shape: tuple[int, int], size: float, rng: Rng) -> Plane:
    """A round thing with a wavy outline, 1 inside and 0 outside."""
    height, width = shape
    count = 48
    angles = np.linspace(0, 2 * math.pi, count, endpoint=False)
    radii = np.ones(count)
    for k in (1, 2, 3, 4):
        radii += 0.35 / k * between(rng, -1, 1) * np.cos(k * angles + between(rng, 0, 6.3))
    radii *= size * min(shape) / 2
    x = between(rng, 0.1, 0.9) * width + radii * np.cos(angles) * between(rng, 0.7, 1.4)
    y = between(rng, 0.1, 0.9) * height + radii * np.sin(angles) * between(rng, 0.7, 1.4)
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [np.round(np.stack([x, y], axis=1) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return mask.astype(np.float32) / np.float32(255)
