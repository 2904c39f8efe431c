"""Rain and snow in the air."""

import math
from typing import Literal

import cv2
import numpy as np

from daclip.degradations.blur import path_kernel
from daclip.degradations.common import (
    Parameters,
    Pixels,
    Plane,
    Rng,
    between,
    choice,
    magnification,
    near_white,
    smooth_field,
    softened,
    to_linear,
    to_stored,
)


def _streaks(
    shape: tuple[int, int], *, density: float, length: float, thickness: float, angle: float, rng: Rng
) -> Plane:
    """A layer of parallel streaks, each up to 1; `density` per pixel, `angle` in degrees off vertical."""
    height, width = shape
    side = int(math.hypot(height, width)) + 3
    canvas = np.zeros(side * side, np.float32)
    count = max(1, int(density * side * side))
    canvas[rng.integers(side * side, size=count)] = rng.random(count, np.float32) * np.float32(
        0.7
    ) + np.float32(0.3)
    rows = max(1, round(length))
    streaks = cv2.boxFilter(canvas.reshape(side, side), -1, (1, rows), normalize=False)
    streaks = cv2.blur(streaks, (1, max(1, rows // 3)))  # ends fade
    if thickness > 0.3:
        streaks = cv2.GaussianBlur(streaks, (0, 0), sigmaX=thickness, sigmaY=0.3) * np.float32(
            1.6 * thickness
        )
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), angle, 1.0)
    turn[:, 2] -= ((side - width) / 2, (side - height) / 2)
    return cv2.warpAffine(
        streaks, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )


def rainy(
    pixels: Pixels, severity: float, rng: Rng, *, kind: Literal["additive", "veiled"] | None = None
) -> tuple[Pixels, Parameters]:
    """Streaks of falling drops at several depths: far ones fine and dense, near ones long and wide.

    Additive in stored values (light as Rain100L at severity 0.3, heavy and dense as Rain100H near 1) or, as
    in real photos, translucent in linear light with a veil of far rain.
    """
    shape = (pixels.shape[0], pixels.shape[1])
    scale = magnification(pixels)
    drawn = kind or choice(rng, {"additive": 0.6, "veiled": 0.4})
    densest = 0.65 + (0.25 * severity**4 if drawn == "additive" else 0)
    layers = int(rng.integers(1, 4))
    angle, length = between(rng, -35, 35), between(rng, 12, 50) * scale
    rain = np.zeros(shape, np.float32)
    for _ in range(layers):
        near = float(rng.random())
        stretch = length * (0.5 + near)
        streaks = _streaks(
            shape,
            density=severity**1.5 * (1.5 - near) * between(rng, 0.2, densest) / stretch / scale / layers**0.5,
            length=stretch,
            thickness=(0.4 + 0.9 * near * between(rng, 0.6, 1.4)) * scale,
            angle=angle + between(rng, -4, 4),
            rng=rng,
        )
        rain += streaks * np.float32(0.5 + 0.5 * near)
    strength = severity**0.5 * between(rng, 0.6, 1)
    rain = np.minimum(rain * np.float32(strength), 1)[..., None]
    parameters: Parameters = {"kind": drawn, "layers": layers, "angle_degrees": round(angle, 1)}
    parameters |= {"length_pixels": round(length, 1), "strength": round(strength, 2)}
    if drawn == "additive":
        return pixels + rain, parameters
    veil = 0.55 * severity * float(rng.random())
    light = to_linear(pixels)
    sky = near_white(rng, 0.06) * np.float32(between(rng, 0.5, 0.9))
    light += (sky - light) * (np.float32(veil) * (0.6 + 0.4 * smooth_field(shape, 3, rng)))[..., None]
    light += (np.maximum(sky, light) - light) * rain * np.float32(0.8)
    return to_stored(light), {**parameters, "veil": round(veil, 2)}


def _flakes(shape: tuple[int, int], radius: float, cover: float, rng: Rng) -> Plane:
    """Round and oval flakes of about one radius, of many opacities, that cover about a share of the photo."""
    height, width = shape
    canvas = np.zeros(shape, np.uint8)
    count = max(1, round(cover * height * width / (math.pi * radius**2)))
    xs, ys = rng.random(count) * width * 16, rng.random(count) * height * 16
    sizes = radius * 16 * np.exp(0.35 * rng.standard_normal(count))
    shades, ovals, turns = (
        rng.integers(90, 256, count),
        rng.random(count) * 0.6 + 0.4,
        rng.random(count) * 180,
    )
    for x, y, size, shade, oval, turn in zip(xs, ys, sizes, shades, ovals, turns, strict=True):
        axes = (max(8, int(size)), max(8, int(size * oval)))
        cv2.ellipse(canvas, (int(x), int(y)), axes, float(turn), 0, 360, int(shade), -1, cv2.LINE_AA, 4)
    return canvas.astype(np.float32) / np.float32(255)


def snowy(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """Flakes at several distances, blurred by defocus and fall, over a veil of flakes too far to be seen."""
    shape = (pixels.shape[0], pixels.shape[1])
    scale = magnification(pixels)
    angle, fall = between(rng, -45, 45), between(rng, 0, 3)
    clear = np.ones(shape, np.float32)
    sizes = {"small": 0.9, "medium": 2.2, "large": 6.0}
    covers = {"small": 0.07, "medium": 0.06, "large": 0.07}
    parameters: Parameters = {"angle_degrees": round(angle, 1), "fall": round(fall, 2)}
    for size, radius in sizes.items():
        cover = covers[size] * severity * between(rng, 0.2, 1.6)
        actual = radius * between(rng, 0.7, 1.5) * scale
        if actual < 1.6:
            layer = _streaks(
                shape, density=cover / 3, length=1 + fall * 1.5, thickness=0.6, angle=angle, rng=rng
            )
        else:
            reach = fall * actual * 0.6
            layer = _flakes(shape, actual, cover, rng)
            layer = softened(_smeared(layer, reach, angle), actual * between(rng, 0.1, 0.5))
        clear *= 1 - np.minimum(layer, 1) * np.float32(0.5 + 0.5 * severity)
        parameters |= {f"{size}_cover": round(cover, 3)}
    veil = 0.5 * severity**1.3 * float(rng.random())
    white = near_white(rng, 0.04) * np.float32(between(rng, 0.7, 1))
    light = to_linear(pixels)
    light += (white * np.float32(0.8) - light) * (
        np.float32(veil) * (0.5 + 0.5 * smooth_field(shape, 3, rng))
    )[..., None]
    light += (white - light) * (1 - clear)[..., None]
    return to_stored(light), {**parameters, "veil": round(veil, 2)}


def _smeared(plane: Plane, reach: float, angle: float) -> Plane:
    """The plane moved along a straight line; the angle is degrees off vertical."""
    if reach < 1:
        return plane
    steps = np.linspace(-reach / 2, reach / 2, max(3, int(reach * 3)))
    turn = math.radians(angle)
    return cv2.filter2D(
        plane, -1, path_kernel(np.stack([steps * math.sin(turn), steps * math.cos(turn)], axis=1))
    )
