"""Haze: light that the air adds and takes, by distance."""

import math
from functools import partial

import cv2
import numpy as np

from daclip.degradations.common import (
    Parameters,
    Pixels,
    Plane,
    Rng,
    between,
    chance,
    choice,
    linear_ramp,
    listed,
    near_white,
    smooth_field,
    to_linear,
    to_stored,
)


def _guided(plane: Plane, guide: Plane, radius: int) -> Plane:
    """The plane smoothed so that its edges follow those of the guide (guided filter, He et al. 2010)."""
    mean = partial(cv2.blur, ksize=(2 * radius + 1, 2 * radius + 1))
    guide_mean, plane_mean = mean(guide), mean(plane)
    slope = (mean(guide * plane) - guide_mean * plane_mean) / (mean(guide * guide) - guide_mean**2 + 1e-3)
    return mean(slope) * guide + mean(plane_mean - slope * guide_mean)


def _depth(pixels: Pixels, rng: Rng) -> Plane:
    """A plausible distance of each pixel, mean 1: far at the top, one brightness at one distance.

    Of half of them the near is nearly clear, as in most photos of haze outdoors: ground up to a horizon, what
    stands on it, and beyond it all equally far.
    """
    shape = (pixels.shape[0], pixels.shape[1])
    luma = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    upward = linear_ramp(shape, -math.pi / 2 + between(rng, -0.5, 0.5))
    radius = max(2, round(min(shape) / 24))
    heights = np.sort(rng.random(5)) + 0.3 * rng.random(5)  # brighter is farther, more often than not
    levels = np.interp(np.linspace(0, 1, 256), np.linspace(0, 1, 5), heights)
    things = np.take(levels.astype(np.float32), (cv2.blur(luma, (5, 5)) * 255).astype(np.uint8))
    if chance(rng, 0.5):
        depth = _ground(upward, horizon=between(rng, 0.3, 1.1), near=between(rng, 0.04, 0.3))
        depth = depth * (1 - between(rng, 0, 0.9) * (1 - things / things.max()))
        depth = depth + between(rng, 0, 0.2) * smooth_field(shape, between(rng, 2, 6), rng)
    else:
        depth = (
            between(rng, 0.2, 2) * upward ** between(rng, 0.7, 3)
            + between(rng, 0, 0.8) * smooth_field(shape, between(rng, 2, 6), rng)
            + between(rng, 0, 0.8) * things
            + between(rng, 0.1, 0.8)
        )
    depth = np.maximum(_guided(depth.astype(np.float32), luma, radius), 0.02)
    return depth / depth.mean()


def _ground(upward: Plane, *, horizon: float, near: float) -> Plane:
    """Distance over level ground at each height, 0 to 1: `near` at the foot, 1 at the horizon and above."""
    below = np.maximum(1 - upward / np.float32(horizon), 0)  # a line of sight meets the ground at 1 / below
    return 1 / (1 + below * np.float32(1 / near - 1))


def hazy(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """Koschmieder's law, I = J t + A (1 - t), t = exp(-optical depth): mean optical depth up to about 2.

    In linear light, as nature has it, or in stored values, as the RESIDE benchmark has it.
    """
    space = choice(rng, {"stored": 0.6, "linear": 0.4})
    thickness = 1.75 * severity**1.25 * between(rng, 0.65, 1)
    spread = float(choice(rng, {"0.04": 0.6, "0.1": 0.3, "0.2": 0.1}))  # smog is brown
    lightness = between(rng, 0.72, 1) if chance(rng, 0.8) else between(rng, 0.5, 0.8)
    airlight = near_white(rng, spread) * np.float32(lightness)
    through = np.exp(-np.float32(thickness) * _depth(pixels, rng))[..., None]
    if space == "linear":
        veiled = to_stored(to_linear(pixels) * through + to_linear(airlight) * (1 - through))
    else:
        veiled = pixels * through + airlight * (1 - through)
    return veiled, {"optical_depth": round(thickness, 3), "airlight": listed(airlight), "light": space}
