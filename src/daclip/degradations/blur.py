"""Blur by motion: of the camera, or of a thing before it."""

import math

import cv2
import numpy as np
from jaxtyping import Float, Float32

from daclip.degradations.common import (
    Number,
    Parameters,
    Pixels,
    Rng,
    between,
    chance,
    choice,
    magnification,
    random_blob,
    smooth_field,
    softened,
    to_linear,
    to_stored,
)


def shake_path(extent: Number, wobble: float, rng: Rng) -> Float[np.ndarray, "n 2"]:
    """Path of a point over the exposure: a random walk of direction and speed, `extent` pixels long or wide.

    Its mean is zero, so the photo is not shifted.
    """
    n = 64
    turns = rng.standard_normal(n) * wobble
    if chance(rng, 0.25):
        turns[rng.integers(n)] += between(rng, 1.5, math.pi)  # a jerk: the hand turns back
    heading = between(rng, 0, 2 * math.pi) + np.cumsum(turns)
    speed = np.exp(0.25 * np.cumsum(rng.standard_normal(n)) - 0.1)
    steps = speed[:, None] * np.stack([np.cos(heading), np.sin(heading)], axis=1)
    points = np.cumsum(steps, axis=0)
    points *= extent / max(float(np.ptp(points, axis=0).max()), 1e-9)
    fine = np.linspace(0, n - 1, max(n, int(extent * 8)))
    dense = np.stack([np.interp(fine, np.arange(n), points[:, axis]) for axis in (0, 1)], axis=1)
    return dense - dense.mean(axis=0)


def path_kernel(points: Float[np.ndarray, "n 2"]) -> Float32[np.ndarray, "k k"]:
    """The path drawn with sub-pixel accuracy, softened by the lens, sum 1."""
    half = math.ceil(float(np.abs(points).max())) + 1
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float64)
    base = np.floor(points).astype(np.int64)
    part = points - base
    for dy in (0, 1):
        for dx in (0, 1):
            weight = np.abs(1 - dx - part[:, 0]) * np.abs(1 - dy - part[:, 1])
            np.add.at(kernel, (base[:, 1] + dy + half, base[:, 0] + dx + half), weight)
    return (kernel / kernel.sum()).astype(np.float32)


def _moving_object(light: Pixels, extent: float, rng: Rng) -> Pixels:
    """One thing moves straight on before a still scene: its light and its outline are smeared together."""
    angle = between(rng, 0, math.pi)
    reach = np.linspace(-extent / 2, extent / 2, max(8, int(extent * 4)))
    kernel = path_kernel(np.stack([reach * math.cos(angle), reach * math.sin(angle)], axis=1))
    matte = softened(random_blob((light.shape[0], light.shape[1]), between(rng, 0.5, 1), rng), 1.0)[..., None]
    smeared = cv2.filter2D(np.concatenate([light * matte, matte], axis=2), -1, kernel)
    return light * (1 - smeared[..., 3:]) + smeared[..., :3]


def motion_blurry(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """Light summed along a path during the exposure, then a little sensor noise.

    Camera shake (the same or a changing path over the photo), a straight pan, or an object that moves. The
    path is up to 31 pixels wide at severity 1.
    """
    kind = choice(rng, {"shake": 0.4, "changing shake": 0.25, "pan": 0.15, "object": 0.2})
    extent = 31 * severity**0.9 * between(rng, 0.75, 1) * magnification(pixels)
    light = to_linear(pixels)
    path = shake_path(
        extent * (0.3 if kind == "object" else 1), 0.02 if kind == "pan" else between(rng, 0.1, 0.5), rng
    )
    blurred = cv2.filter2D(light, -1, path_kernel(path))
    if kind == "changing shake":
        turn = between(rng, -0.6, 0.6)
        turned = path @ np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        other = cv2.filter2D(light, -1, path_kernel(turned * between(rng, 0.2, 0.8)))
        share = smooth_field((pixels.shape[0], pixels.shape[1]), 3, rng)[..., None]
        blurred += (other - blurred) * share
    elif kind == "object":
        blurred = _moving_object(blurred, extent * 1.4, rng)
    sigma = between(rng, 0, 2) * min(1.0, 4 * severity) / 255
    noisy_values = to_stored(blurred) + np.float32(sigma) * rng.standard_normal(pixels.shape, np.float32)
    return noisy_values, {
        "kind": kind,
        "extent_pixels": round(extent, 2),
        "noise_8bit": round(sigma * 255, 2),
    }
