"""Missing parts: strokes, boxes, writing."""

import math

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from daclip.degradations.common import (
    Number,
    Parameters,
    Pixels,
    Rng,
    between,
    chance,
    choice,
)


def draw_strokes(
    shape: tuple[int, int], missing: float, thickness: tuple[Number, Number], rng: Rng
) -> UInt8[np.ndarray, "h w"]:
    """Zigzag strokes with round ends, drawn until a share of the photo is covered; 255 = missing.

    The thickness is drawn from a range relative to the shorter side.
    """
    height, width = shape
    side = min(shape)
    mask = np.zeros(shape, np.uint8)
    for _ in range(400):  # far more than it takes; an end for photos of a few pixels
        x, y = between(rng, 0, width), between(rng, 0, height)
        heading = between(rng, 0, 2 * math.pi)
        thick = max(1, round(side * between(rng, *thickness)))
        for _ in range(int(rng.integers(1, 6))):
            length = side * between(rng, 0.04, 0.22)
            end = (x + math.cos(heading) * length, y + math.sin(heading) * length)
            cv2.line(mask, (round(x), round(y)), (round(end[0]), round(end[1])), 255, thick)
            if cv2.countNonZero(mask) >= missing * mask.size:
                return mask
            x, y = end
            heading += between(rng, -1.2, 1.2) + (math.pi if chance(rng, 0.3) else 0)
    return mask


def _boxes(shape: tuple[int, int], missing: float, rng: Rng) -> UInt8[np.ndarray, "h w"]:
    """Rectangles that cover a share of the photo together; 255 = missing."""
    height, width = shape
    mask = np.zeros(shape, np.uint8)
    largest = math.sqrt(missing) * between(rng, 0.4, 1)
    for _ in range(200):
        tall, wide = (max(1, round(side * largest * between(rng, 0.4, 1))) for side in shape)
        top, left = (
            round(between(rng, -tall / 2, height - tall / 2)),
            round(between(rng, -wide / 2, width - wide / 2)),
        )
        mask[max(0, top) : max(0, top + tall), max(0, left) : max(0, left + wide)] = 255
        if cv2.countNonZero(mask) >= missing * mask.size:
            break
    return mask


_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789&@%!?"


def _writing(shape: tuple[int, int], missing: float, rng: Rng) -> UInt8[np.ndarray, "h w"]:
    """Lines of random writing over the photo; 255 = missing. More is missing with more and bolder lines."""
    height, width = shape
    mask = np.zeros(shape, np.uint8)
    fonts = (
        cv2.FONT_HERSHEY_SIMPLEX,
        cv2.FONT_HERSHEY_DUPLEX,
        cv2.FONT_HERSHEY_TRIPLEX,
        cv2.FONT_HERSHEY_COMPLEX,
    )
    for _ in range(60):
        size = min(shape) / 256 * between(rng, 0.4, 1.6)
        thick = max(1, round(size * 2 * (1 + 3 * missing)))
        text = "".join(
            _LETTERS[i] if i < len(_LETTERS) else " " for i in rng.integers(len(_LETTERS) + 8, size=40)
        )
        at = (round(between(rng, -0.3, 0.5) * width), round(between(rng, 0, 1.05) * height))
        cv2.putText(mask, text, at, fonts[int(rng.integers(4))], size, 255, thick)
        if cv2.countNonZero(mask) >= missing * mask.size:
            break
    return mask


_FILLS = {"white": 0.62, "black": 0.12, "grey": 0.06, "colour": 0.1, "noise": 0.1}


def _fill(kind: str, shape: tuple[int, int], rng: Rng) -> Float32[np.ndarray, "#h #w 3"]:
    """What stands in the missing places."""
    if kind == "noise":
        return rng.random((*shape, 3), np.float32)
    if kind == "colour":
        return rng.random((1, 1, 3), np.float32)
    return np.full((1, 1, 3), {"white": 1.0, "black": 0.0, "grey": 0.5}[kind], np.float32)


def uncompleted(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """Parts of the photo are gone, up to half: strokes, scratches, boxes or writing, mostly white."""
    shape = (pixels.shape[0], pixels.shape[1])
    kind = choice(rng, {"strokes": 0.55, "scratches": 0.15, "boxes": 0.15, "writing": 0.15})
    missing = severity * between(rng, 0.35, 0.5) * (0.5 if kind in ("scratches", "writing") else 1)
    if kind == "strokes":
        mask = draw_strokes(shape, missing, (0.02, 0.08), rng)
    elif kind == "scratches":
        mask = draw_strokes(shape, missing, (0.004, 0.012), rng)
    elif kind == "boxes":
        mask = _boxes(shape, missing, rng)
    else:
        mask = _writing(shape, missing, rng)
    fill = choice(rng, _FILLS)
    gone = (mask > 0)[..., None]
    return np.where(gone, _fill(fill, shape, rng), pixels), {
        "kind": kind,
        "fill": fill,
        "missing": round(float(gone.mean()), 3),
    }
