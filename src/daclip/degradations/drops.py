"""Drops on the pane before the lens."""

import math

import cv2
import numpy as np
from jaxtyping import Float32, Int32

from daclip.degradations.common import (
    Parameters,
    Pixels,
    Plane,
    Rng,
    between,
    magnification,
    smooth_field,
    softened,
    to_linear,
    to_stored,
)


def _drop_outlines(
    shape: tuple[int, int], drops: Float32[np.ndarray, "n 3"], rng: Rng
) -> tuple[Plane, Int32[np.ndarray, "h w"]]:
    """How much of each pixel is drop, and whose: round outlines with two and three lobes and soft edges.

    Each row of `drops` is a centre x, y and a radius in pixels.
    """
    cover, owner = np.zeros(shape, np.float32), np.zeros(shape, np.int32)
    lobes = rng.random((len(drops), 2)) * (0.2, 0.12) * np.exp(2j * math.pi * rng.random((len(drops), 2)))
    for index, ((x, y, radius), (two, three)) in enumerate(
        zip(drops.tolist(), lobes.astype(np.complex64), strict=True)
    ):
        top, bottom = max(0, int(y - 1.4 * radius)), min(shape[0], int(y + 1.4 * radius) + 2)
        left, right = max(0, int(x - 1.4 * radius)), min(shape[1], int(x + 1.4 * radius) + 2)
        dx, dy = np.arange(left, right, dtype=np.float32) - x, np.arange(top, bottom, dtype=np.float32) - y
        place = (dx[None, :] + 1j * dy[:, None]) / radius
        distance = np.abs(place)
        around = place / np.maximum(distance, 1e-6)
        outline = 1 + (around * around * (two + three * around)).real
        inside = np.minimum((1 - distance / outline) * 4, 1)
        mine = inside > cover[top:bottom, left:right]
        np.copyto(cover[top:bottom, left:right], inside, where=mine, casting="same_kind")
        np.copyto(owner[top:bottom, left:right], index, where=mine)
    return cover, owner


def _through_drops(
    light: Pixels, drops: Float32[np.ndarray, "n 3"], owner: Int32[np.ndarray, "h w"], bright: float
) -> Pixels:
    """What each pixel shows where its drop covers it: the scene around the drop, upside down and shrunken.

    Upside down means that the sky fills the lower half, all the more as much of it lies beyond the photo.
    """
    height, width = owner.shape
    x, y, radius = drops.T[:, owner]
    dx = (np.arange(width, dtype=np.float32) - x) / radius
    dy = (np.arange(height, dtype=np.float32)[:, None] - y) / radius
    reach = np.float32(0.4 * min(height, width))
    small = cv2.resize(light, (max(1, width // 4), max(1, height // 4)), interpolation=cv2.INTER_AREA)
    seen = cv2.remap(
        softened(small, 1.5),
        (x - dx * reach) / 4,
        (y - dy * reach) / 4,
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    low = np.clip(0.5 + 0.5 * dy, 0, 1)[..., None]
    return seen * (0.4 + 0.6 * low) + (_sky(light) - seen) * (np.float32(bright) * low)


def _sky(light: Pixels) -> Float32[np.ndarray, "3"]:
    """The light of the brightest twentieth of the photo."""
    return np.quantile(light[::4, ::4].reshape(-1, 3), 0.95, axis=0).astype(np.float32)


def _drops(shape: tuple[int, int], cover: float, radius: float, rng: Rng) -> Float32[np.ndarray, "n 3"]:
    """Places and radii of drops that cover about a share of the photo: x, y, radius in pixels."""
    count = max(1, round(cover * shape[0] * shape[1] / (1.8 * math.pi * radius**2)))
    radii = np.clip(radius * np.exp(0.5 * rng.standard_normal(count)), 1.2, 5 * radius)
    drops = [rng.random(count) * shape[1], rng.random(count) * shape[0], radii]
    return np.stack(drops, axis=1).astype(np.float32)


def raindrop(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """Drops on a pane before the lens: each shows the scene upside down, small, out of focus, soft-edged.

    Upside down means the light of the sky fills their lower half, so they are brighter than the scene and
    dark at the top. All drops of a photo share one defocus. The pane between them is wet and a little blurred
    in places.
    """
    shape = (pixels.shape[0], pixels.shape[1])
    scale = magnification(pixels)
    light = to_linear(pixels)
    radius = between(rng, 3, 13) * (0.6 + 0.4 * severity) * scale
    drops = _drops(shape, severity * between(rng, 0.35, 0.7), radius, rng)
    cover, owner = _drop_outlines(shape, drops, rng)
    bright = between(rng, 0.2, 0.9)
    seen = _through_drops(light, drops, owner, bright)
    defocus = radius * between(rng, 0.15, 0.8)
    opacity = np.float32(between(rng, 0.7, 1) * min(1.0, 0.5 + severity))
    layer = softened(np.concatenate([seen * cover[..., None], cover[..., None]], axis=2), defocus) * opacity
    wet = (smooth_field(shape, 4, rng) * np.float32(severity * between(rng, 0.2, 1)))[..., None]
    scene = light + (softened(light, 2 * scale) - light) * wet
    scene += (_sky(light) - scene) * np.float32(0.08) * wet
    return to_stored(scene * (1 - layer[..., 3:]) + layer[..., :3]), {
        "drops": len(drops),
        "radius_pixels": round(radius, 1),
        "defocus_pixels": round(defocus, 2),
        "brightening": round(bright, 2),
    }
