"""Shadows cast by things outside of the photo."""

import math

import cv2
import numpy as np
from jaxtyping import UInt8

from daclip.degradations.common import (
    Number,
    Parameters,
    Pixels,
    Plane,
    Rng,
    between,
    chance,
    choice,
    linear_ramp,
    listed,
    magnification,
    random_blob,
    smooth_field,
    softened,
    to_linear,
    to_stored,
)


def _polygon(shape: tuple[int, int], size: float, rng: Rng) -> UInt8[np.ndarray, "h w"]:
    """A filled star-shaped polygon of a size relative to the shorter side, anywhere, also over the border."""
    height, width = shape
    count = int(rng.integers(3, 11))
    angles = np.sort(rng.random(count)) * 2 * math.pi
    radii = size * min(shape) * (0.4 + 0.6 * rng.random(count))
    corners = np.stack(
        [
            between(rng, 0, 1) * width + radii * np.cos(angles) * between(rng, 0.6, 1.6),
            between(rng, 0, 1) * height + radii * np.sin(angles) * between(rng, 0.6, 1.6),
        ],
        axis=1,
    )
    mask = np.zeros(shape, np.uint8)
    return cv2.fillPoly(mask, [np.round(corners * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)


def _branches(shape: tuple[int, int], rng: Rng) -> Plane:
    """The shadow of a tree: a trunk that forks several times, with or without leaves."""
    height, width = shape
    mask = np.zeros(shape, np.uint8)
    side = min(shape)
    turned = between(rng, 0, 2 * math.pi)
    start = (width / 2 - math.cos(turned) * width * 0.6, height / 2 - math.sin(turned) * height * 0.6)
    stems = [(*start, turned, side * between(rng, 0.3, 0.5), side * between(rng, 0.02, 0.08))]
    leaves = chance(rng, 0.5)
    for _ in range(5):
        forks: list[tuple[float, float, float, float, float]] = []
        for x, y, heading, length, thickness in stems:
            end = (x + math.cos(heading) * length, y + math.sin(heading) * length)
            line = [(int(x * 16), int(y * 16)), (int(end[0] * 16), int(end[1] * 16))]
            cv2.line(mask, line[0], line[1], 255, max(1, round(thickness)), cv2.LINE_AA, 4)
            if leaves:
                cv2.circle(mask, line[1], int(16 * length * between(rng, 0.1, 0.3)), 255, -1, cv2.LINE_AA, 4)
            forks += [
                (*end, heading + turn, length * between(rng, 0.55, 0.9), thickness * 0.65)
                for turn in (between(rng, -0.8, -0.1), between(rng, 0.1, 0.8))
            ]
        stems = forks
    return mask.astype(np.float32) / np.float32(255)


def _figure(shape: tuple[int, int], rng: Rng) -> Plane:
    """The shadow of a person who stands somewhere before the border, or beyond it: head, trunk and arms."""
    side = min(shape)
    turned, length = between(rng, 0, 2 * math.pi), side * between(rng, 0.25, 0.9)
    width = length * between(rng, 0.12, 0.35)
    head = complex(between(rng, 0, 1) * shape[1], between(rng, 0, 1) * shape[0])
    down = complex(math.cos(turned), math.sin(turned))  # from the head to the feet
    mask = np.zeros(shape, np.uint8)

    def at(along: Number, across: Number) -> tuple[int, int]:
        point = head + down * complex(along, across)
        return round(point.real * 16), round(point.imag * 16)

    neck, hips = width * between(rng, 0.4, 0.6), length * between(rng, 0.45, 0.6)
    cv2.circle(mask, at(0, 0), round(16 * neck), 255, -1, cv2.LINE_AA, 4)
    waist, feet = width * between(rng, 0.5, 0.9) / 2, width * between(rng, 0.3, 1) / 2
    outline = [(0, neck / 2), (1.2 * neck, width / 2), (hips, waist), (length, feet)]
    outline += [(along, -across) for along, across in reversed(outline)]
    cv2.fillPoly(mask, [np.array([at(*corner) for corner in outline], np.int32)], 255, cv2.LINE_AA, 4)
    for sign in (-1, 1):
        elbow = (hips * between(rng, 0.2, 0.8), sign * width * between(rng, 0.5, 1.2))
        hand = (elbow[0] + hips * between(rng, -0.5, 0.5), elbow[1] + sign * width * between(rng, -0.6, 0.6))
        thickness = max(1, round(width * between(rng, 0.15, 0.3)))
        for first, last in (((1.5 * neck, sign * width * 0.4), elbow), (elbow, hand)):
            cv2.line(mask, at(*first), at(*last), 255, thickness, cv2.LINE_AA, 4)
    return mask.astype(np.float32) / np.float32(255)


def _shadow_shape(kind: str, shape: tuple[int, int], rng: Rng) -> Plane:
    """A hard-edged shadow of the named kind, 1 in the shade."""
    if kind == "polygon":
        return _polygon(shape, between(rng, 0.15, 0.9), rng).astype(np.float32) / np.float32(255)
    if kind == "blob":
        return np.maximum(
            random_blob(shape, between(rng, 0.15, 0.8), rng), random_blob(shape, between(rng, 0.15, 0.5), rng)
        )
    if kind == "figure":
        return _figure(shape, rng)
    if kind == "tree":
        return _branches(shape, rng)
    if kind == "edge":
        ramp = linear_ramp(shape, between(rng, 0, 2 * math.pi))
        return (ramp > between(rng, 0.3, 0.7)).astype(np.float32)
    if kind == "bars":
        ramp = linear_ramp(shape, between(rng, 0, math.pi)) * np.float32(between(rng, 3, 9))
        return (ramp % 1 < between(rng, 0.3, 0.6)).astype(np.float32)
    field = smooth_field(shape, between(rng, 3, 14), rng)
    return (field > np.float32(between(rng, 0.4, 0.55))).astype(np.float32)


def _shadow_where_light_is(kind: str, light: Pixels, rng: Rng) -> Plane:
    """A shadow of the named kind over 4 to 75 % of the photo's light; after twelve tries, the last one."""
    luma = light.mean(axis=2)
    total = max(float(luma.sum()), 1e-6)
    mask = luma
    for _ in range(12):
        mask = _shadow_shape(kind, (light.shape[0], light.shape[1]), rng)
        if 0.04 <= float((mask * luma).sum()) / total <= 0.75:
            break
    return mask


def shadowed(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """A cast shadow: inside it only the light of the sky is left, bluer and down to a twelfth.

    The edge is sharp where the thing is near and soft where it is far.
    """
    shape = (pixels.shape[0], pixels.shape[1])
    kinds = {"polygon": 0.24, "figure": 0.22, "blob": 0.18, "tree": 0.12, "edge": 0.12, "dapple": 0.08}
    kind = choice(rng, {**kinds, "bars": 0.04})
    light = to_linear(pixels)
    mask = _shadow_where_light_is(kind, light, rng)
    sharp, soft = between(rng, 0.5, 2) * magnification(pixels), between(rng, 2, 9) * magnification(pixels)
    far = linear_ramp(shape, between(rng, 0, 2 * math.pi))
    edge = softened(mask, sharp)
    edge += (softened(mask, soft) - edge) * far
    left = math.exp(-severity * between(rng, 1.1, 2.5))
    blue = between(rng, 0, 0.35) * severity
    ambient = np.array([left * (1 - blue), left, min(1.0, left * (1 + blue))], np.float32)
    light *= 1 - edge[..., None] * (1 - ambient)
    return to_stored(light), {
        "kind": kind,
        "light_left": listed(ambient),
        "edge_pixels": [round(sharp, 1), round(soft, 1)],
        "share": round(float(mask.mean()), 3),
    }
